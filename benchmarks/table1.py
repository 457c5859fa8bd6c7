"""The paper's table 1: average reward of every task and method with 95 % intervals, from comparisons that have run.

``python -m benchmarks.table1 --comparisons '[runs/positive_generation,runs/summarisation,runs/dialogue]' --out DIR``
"""

from collections.abc import Sequence

from benchmarks.base.command_line import parse, refusals
from benchmarks.experiments.settings import TableOne

NAME = "benchmarks.table1"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; bad input ends the process with the reason."""
    settings = parse(TableOne, NAME, argv)
    with refusals(NAME):
        settings.require_comparisons()
        from benchmarks.experiments import table1

        table1.run(settings)


if __name__ == "__main__":
    main()
