"""Which of two checkpoints answers better: the same prompts and uniforms for both, judged pair by pair.

``python -m benchmarks.preference --first DIR --second DIR --prompts FILE --out OUT`` with ``--reward.model DIR``, or
with ``--endpoint.url URL --endpoint.model NAME``. OUT then holds run.json, prompts.json (rows used and left out),
responses-first.json and responses-second.json (AlpacaEval's format), verdicts.jsonl, table.md, table.csv and
results.json. Call again to resume, or to ask another judge about the same responses: nothing that is there is drawn or
judged twice. From Python, :func:`benchmarks.judging.pairwise_comparison.compare` takes any judge, or a function.
"""

import sys

from rich.console import Console

from benchmarks.base.command_line import parse
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.judging.chat_endpoint import EndpointError
from benchmarks.judging.pairwise_comparison import compare
from benchmarks.judging.settings import PreferenceSettings

NAME = "benchmarks.preference"


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(PreferenceSettings, NAME, argv)
    quiet_libraries()
    try:
        compare(settings, Console())
    except (ValueError, OSError) as error:  # OSError: transformers', too, for a model that is not there
        print(f"python -m {NAME}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except EndpointError as error:
        raise SystemExit(f"error: {error}; call again to go on from there") from error


if __name__ == "__main__":
    main()
