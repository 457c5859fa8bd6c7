"""Check a comparison without running it and without a GPU: names, files, prompts, every method, cost and memory.

``dense-rlhf check`` takes the flags of a comparison, loads its models on the CPU, asks them for what each method needs,
and prints the plan and what it would cost. It ends with status 2 if anything would stop the comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.runs.script import Script
from benchmarks.runs.settings import ComparisonSettings


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Settings of the check itself."""

    card_gib: float = 24.0
    """Memory of the card that the comparison is to run on, in GiB."""


def wrong_files(given: Mapping[str, Any]) -> str:
    """What is wrong with policy, prompts and reward of a comparison whose methods were refused."""
    if not all(given[name] for name in ("policy", "data", "reward")):
        return ""
    try:
        ComparisonSettings(**{**given, "redistributors": "sparse", "controls": ""}).make_task()
    except ValueError as error:
        return f"{error}"
    return ""


def preflight() -> Any:
    """What looks at a comparison, imported once the settings are read."""
    from benchmarks.runs import preflight

    return preflight


SCRIPT = Script(
    name="check",
    summary="Check a comparison without running it and without a GPU: names, files, prompts, every method, cost and "
    "memory. It takes the flags of a comparison, and loads the models on the CPU.",
    experiment=preflight,
    options=CheckOptions,
    defaults={"out": "runs/compare", "eval_prompts": 16},
    besides=wrong_files,
)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    SCRIPT.main(argv)


if __name__ == "__main__":
    main()
