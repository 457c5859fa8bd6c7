"""Language model, reward model and prompts of a task, made from data files.

``python -m benchmarks.prepare TASK --out DIR ...`` (``--help`` after a task lists its settings)

writes DIR/policy and DIR/reward (folders that share one tokenizer), DIR/prompts.jsonl, DIR/report.json (perplexity,
held-out accuracy, samples) and DIR/run.json.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base.command_line import called_as, parse, refusals
from benchmarks.data.records import require_sources
from benchmarks.tasks.preparation_settings import TASK_DEFAULTS, PreferencePreparation, ReviewPreparation
from benchmarks.tasks.prepared_folder import require_replaceable
from rlhf_core.names import nearest

NAME = "benchmarks.prepare"


def _prepare_reviews(settings: ReviewPreparation) -> dict[str, Any]:
    from benchmarks.tasks.prepare_reviews import prepare_positive_generation

    return prepare_positive_generation(settings)


def _prepare_preferences(settings: PreferencePreparation) -> dict[str, Any]:
    from benchmarks.tasks.prepare_preferences import prepare_preferences

    return prepare_preferences(settings)


PREPARATIONS: Mapping[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "positive_generation": (ReviewPreparation, _prepare_reviews),
    "summarisation": (PreferencePreparation, _prepare_preferences),
    "dialogue": (PreferencePreparation, _prepare_preferences),
}
"""By task: its settings, and what makes its models, imported once the settings are read."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the name of a task, then its settings as flags or a YAML file."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name not in PREPARATIONS:
        way_out = nearest(name, PREPARATIONS) or f"; the first word must be one of {', '.join(PREPARATIONS)}"
        print(f"{called_as(NAME)}: error: no task {name!r}{way_out}", file=sys.stderr)
        raise SystemExit(2)
    kind, prepare = PREPARATIONS[name]
    settings = parse(kind, f"{NAME} {name}", flags, defaults=TASK_DEFAULTS.get(name))
    with refusals(f"{NAME} {name}"):
        require_sources(settings.sources)
        require_replaceable(Path(settings.out), overwrite=settings.overwrite)
        from benchmarks.base.quiet_libraries import quiet_libraries

        quiet_libraries()
        report = prepare(settings)
        print("samples, prompt | continuation:")
        for sample in report["samples"]:
            print(f"  {' '.join(sample.split())}")
        print(f"written to {settings.out}: policy/, reward/, prompts.jsonl, report.json")


def _usage() -> str:
    about = {name: (kind.__doc__ or "").strip().splitlines()[0] for name, (kind, _) in PREPARATIONS.items()}
    return "\n".join(
        [
            f"usage: {called_as(NAME)} TASK --out DIR [--SETTING VALUE ...]",
            "\nMake the language model, the reward model and the prompts of a task from data files.\n\ntasks:",
            *(f"  {name.ljust(21)} {said}" for name, said in about.items()),
            f"\nsettings of a task: {called_as(NAME)} TASK --help",
        ]
    )


if __name__ == "__main__":
    main()
