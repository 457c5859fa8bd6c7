"""Language model, reward model and prompts of a task, made from data files.

``python -m benchmarks.prepare TASK --out DIR ...`` (``--help`` after a task lists its settings)

writes DIR/policy and DIR/reward (folders that share one tokenizer), DIR/prompts.jsonl, DIR/report.json (perplexity,
held-out accuracy, samples) and DIR/run.json.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils.logging import disable_progress_bar

from benchmarks.base.command_line import parse
from benchmarks.tasks.prepare_preferences import TASK_DEFAULTS, PreferencePreparation, prepare_preferences
from benchmarks.tasks.prepare_reviews import ReviewPreparation, prepare_positive_generation

PREPARATIONS: Mapping[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "positive_generation": (ReviewPreparation, prepare_positive_generation),
    "summarisation": (PreferencePreparation, prepare_preferences),
    "dialogue": (PreferencePreparation, prepare_preferences),
}


def main(argv: Sequence[str]) -> None:
    """Command line: the name of a task, then its settings as flags or a YAML file."""
    usage = f"usage: python -m benchmarks.prepare TASK ... (TASK --help); TASK one of {', '.join(PREPARATIONS)}"
    name, *flags = argv or ["nothing"]
    if name in ("-h", "--help"):
        print(usage)
        return
    if name not in PREPARATIONS:
        raise SystemExit(f"{usage}; got {name}")
    settings_of, prepare = PREPARATIONS[name]
    settings = parse(settings_of, f"benchmarks.prepare {name}", flags, defaults=TASK_DEFAULTS.get(name))
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of every model file that is written
    try:
        report = prepare(settings)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(report["samples"]))


if __name__ == "__main__":
    main(sys.argv[1:])
