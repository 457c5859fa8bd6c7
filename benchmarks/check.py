"""A comparison checked without running it and without a GPU: names, files, prompts, every method, cost and memory.

``dense-rlhf check`` takes the flags of a comparison, loads its models on the CPU, asks them for what each method needs,
and prints the plan and what it would cost. It ends with status 2 if anything would stop the comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.runs.comparison import ComparisonSettings
from benchmarks.runs.script import Script

SUMMARY = (
    "Check a comparison without running it and without a GPU: names, files, prompts, every method, cost and memory. "
    "It takes the flags of a comparison, and loads the models on the CPU."
)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What a comparison is checked against."""

    card_gib: float = 24.0
    """Memory of the card that the comparison is to run on, in GiB."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    defaults = {"out": ComparisonSettings.out}
    script = Script(name="check", summary=SUMMARY, write=_write_nothing, options=CheckOptions, defaults=defaults)
    parser = script.parser()
    ppo = parser.parse_args(argv, defaults=False).as_dict().get("ppo", {})
    try:
        chosen = parser.instantiate(parser.parse_args(argv))
        settings = ComparisonSettings(**{f.name: chosen[f.name] for f in fields(ComparisonSettings)})
        from benchmarks.runs import preflight  # imports torch

        preflight.main(settings, ppo, CheckOptions(card_gib=chosen.card_gib))
    except (ValueError, OSError) as error:
        parser.refuse(error)


def _write_nothing(*_: Any) -> None:
    """A check leaves no file."""


if __name__ == "__main__":
    main()
