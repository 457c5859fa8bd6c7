"""End a command cleanly on Ctrl-C, without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stoppable(way_on: str) -> Iterator[None]:
    """Ctrl-C ends the process with status 130 and one line. The line ends with ``way_on``, which says how to
    continue."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; {way_on}", file=sys.stderr)
        raise SystemExit(130) from None
