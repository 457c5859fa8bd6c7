"""Ctrl-C as an answer, not a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stoppable(way_on: str) -> Iterator[None]:
    """Ctrl-C ends the process with status 130 and one line, which ends with ``way_on``: what is left to do."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; {way_on}", file=sys.stderr)
        raise SystemExit(130) from None
