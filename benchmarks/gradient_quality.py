"""How good is each method's gradient? Repeated rollouts of the same prompts, every method on the same ones.

``python -m benchmarks.gradient_quality --out DIR`` takes four minutes on the embedded task.
"""

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.out_folder import require_free
from benchmarks.credit.settings import GradientSettings

NAME = "benchmarks.gradient_quality"
SECTIONS = {
    "what is studied": ("task", "models", "cache", "redistributors", "sparse_steps", "seed"),
    "how it is measured": ("prompts", "responses_per_prompt", "repetitions", "reference_repetitions", "warm"),
    "where it goes": ("out", "overwrite"),
}


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(GradientSettings, NAME, argv, sections=SECTIONS)
    with refusals(NAME):
        require_free(settings)
        from benchmarks.credit import gradient_study

        gradient_study.run(settings, NAME)


if __name__ == "__main__":
    main()
