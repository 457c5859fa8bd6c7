"""Is credit faithful to the score? Deletion and insertion curves, rank correlations, concentration, signs, cost.

All methods that the models provide for explain the same responses of a task's untrained policy. The reward model itself
scores what is left of a response where tokens were taken away.
"""

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.out_folder import require_free
from benchmarks.credit.settings import FaithfulnessSettings

NAME = "benchmarks.credit_faithfulness"
SECTIONS = {
    "what is studied": ("task", "models", "cache", "redistributors", "responses", "seed"),
    "how it is measured": ("absent", "points", "orders", "continuations", "warm"),
    "where it goes": ("out", "overwrite"),
}


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(FaithfulnessSettings, NAME, argv, sections=SECTIONS)
    with refusals(NAME):
        require_free(settings)
        from benchmarks.credit import faithfulness_report

        faithfulness_report.run(settings, NAME)


if __name__ == "__main__":
    main()
