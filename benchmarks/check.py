"""A comparison checked without running it and without a GPU: names, files, prompts, every method, cost and memory.

``dense-rlhf check`` takes the flags of a comparison, loads its models on the CPU, asks them for what each method needs,
and prints the plan and what it would cost. It ends with status 2 if anything would stop the comparison.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.text_columns import in_columns
from benchmarks.runs.script import asked, comparison_parser

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
    parser = comparison_parser("benchmarks.check", SUMMARY, CheckOptions)
    settings, options, ppo = asked(parser, argv, CheckOptions)
    from benchmarks.runs.preflight import findings  # imports torch

    quiet_libraries()
    problems = 0
    try:
        for found in findings(settings, settings.make_task(), ppo, options.card_gib):
            problems += found.wrong
            mark = "cannot: " if found.wrong else ""
            print(in_columns(found.about, mark + found.said, column=24), flush=True)
    except (ValueError, OSError) as error:
        parser.refuse(error)
    if problems:
        print(f"{parser.prog}: error: {problems} of the findings above would stop the comparison", file=sys.stderr)
        raise SystemExit(2)
    print("The comparison can run.")


if __name__ == "__main__":
    main()
