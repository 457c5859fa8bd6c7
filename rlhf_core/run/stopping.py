"""Stop requests: SIGTERM and SIGINT end a run after the current step, not within it."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

AGAIN = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)
NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)"}
"""What people call a signal, where that is not its name."""
_handled: set[int] = set()
_forking = threading.local()


@final
class StopRequest:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._process = os.getpid()

    def note(self, number: int, _: FrameType | None) -> None:
        """Handle a signal: note the first; let a second act at once, as if this handler did not exist. A signal within
        a second of the first is ignored, because process groups often get a signal twice. A forked child (of a pool in
        a reward, say) has nothing to save.

        A process that ``multiprocessing`` started prints nothing: its parent, which was asked to stop, says so once for
        all of them."""
        if os.getpid() != self._process or (self.signal is not None and time.monotonic() - self._since > AGAIN):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.signal is not None:
            return
        self.signal, self._since = number, time.monotonic()
        if multiprocessing.parent_process() is None:
            os.write(2, f"\n{asked_to_stop(number)}\n".encode())  # print is not reentrant

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that the signal ended: 130, 143."""
        return 128 + (self.signal or 0)


def asked_to_stop(number: int) -> str:
    """What is said of a first signal: what happens now, and what a second one does."""
    name = NAMES.get(signal.Signals(number), signal.Signals(number).name)
    return f"{name}: the step in progress is finished and saved; once more ends at once"


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note the first SIGTERM or SIGINT inside instead of acting on it; handlers are put back afterwards.

    A signal that is ignored (``nohup``, a worker whose parent answers Ctrl-C) stays ignored. Outside of the main
    thread, where Python allows no handlers, nothing changes.
    """
    request = StopRequest()
    _watch_forks()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, request.note)
            _handled.add(number)
    try:
        yield request
    finally:
        _handled.clear()
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@functools.cache
def _watch_forks() -> None:
    """Give forked children (a pool in a reward, say) the default actions from their first moment.

    Python drops a signal that a child receives before it is set up, and a pool that ends at once would then wait for
    that worker forever. So the signals are held back until the child can handle them."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_act_by_default)


def _hold_back() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _handled)


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _act_by_default() -> None:
    for number in _handled:
        signal.signal(number, signal.SIG_DFL)
    _let_through()
