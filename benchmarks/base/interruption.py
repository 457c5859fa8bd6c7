"""End a command cleanly on Ctrl-C, without a traceback."""

import signal
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


@contextmanager
def ctrl_c_held_from_children() -> Iterator[None]:
    """Processes that are started in the block never get Ctrl-C, not even while they still import, where each would
    print a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
