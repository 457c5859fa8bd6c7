"""Language model, reward model and prompts of a task, made from data files.

``python -m benchmarks.prepare TASK --out DIR ...`` (``--help`` after a task lists its settings)

writes DIR/policy and DIR/reward (folders that share one tokenizer), DIR/prompts.jsonl, DIR/report.json (perplexity,
held-out accuracy, samples) and DIR/run.json.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.logging import disable_progress_bar

from benchmarks.base.cli import parse
from benchmarks.tasks.prepare_preferences import DIALOGUE, SUMMARISATION, Preferences, prepare_preferences
from benchmarks.tasks.prepare_reviews import PositiveGeneration, prepare_positive_generation


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A task on the command line."""

    settings: type[Any]
    prepare: Callable[[Any], dict[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the task changes in the defaults of ``settings``."""


PREPARATIONS: Mapping[str, Preparation] = {
    "positive_generation": Preparation(settings=PositiveGeneration, prepare=prepare_positive_generation),
    "summarisation": Preparation(settings=Preferences, prepare=prepare_preferences, defaults=SUMMARISATION),
    "dialogue": Preparation(settings=Preferences, prepare=prepare_preferences, defaults=DIALOGUE),
}


def main(argv: Sequence[str]) -> None:
    """Command line: the name of a task, then its settings as flags or a YAML file."""
    usage = f"usage: python -m benchmarks.prepare TASK ... (TASK --help); TASK one of {', '.join(PREPARATIONS)}"
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return
    if not argv or argv[0] not in PREPARATIONS:
        raise SystemExit(f"{usage}; got {argv[0] if argv else 'nothing'}")
    task = PREPARATIONS[argv[0]]
    settings = parse(task.settings, f"benchmarks.prepare {argv[0]}", list(argv[1:]), defaults=task.defaults)
    disable_progress_bar()  # of every model file that is written
    try:
        report = task.prepare(settings)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(report["samples"]))


if __name__ == "__main__":
    main(sys.argv[1:])
