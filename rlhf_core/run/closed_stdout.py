"""Standard output that may go away: a run goes on when nobody reads its progress bar any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, final


@final
class Lasting:
    """A text stream that falls silent for good once it cannot be written to (``| head``, a closed terminal, a full
    disk under a log), in place of ending whoever writes."""

    def __init__(self, stream: Any) -> None:  # TextIO, or what stands in for it in a notebook or a test
        self._stream = stream

    def write(self, text: str) -> int:
        """As much as was given, written or not."""
        with self._silenced_where_it_fails():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Where there is somebody to flush to."""
        with self._silenced_where_it_fails():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _silenced_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._stream.closed:  # text that its encoding has not
                raise
            failed, self._stream = self._stream, _open_devnull()
            with suppress(OSError, ValueError):  # what is left in its buffer must not fail at exit either
                os.dup2(self._stream.fileno(), failed.fileno())


def make_lasting() -> None:
    """Let this process outlive the readers of its output, from here on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Lasting):
            setattr(sys, name, Lasting(_open_devnull() if stream is None else stream))


@contextmanager
def lasting_output() -> Iterator[None]:
    """The same for a while."""
    before = sys.stdout, sys.stderr
    make_lasting()
    ours = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for name, old, own in zip(("stdout", "stderr"), before, ours, strict=True):
            if getattr(sys, name) is own:  # else somebody else has redirected it since
                setattr(sys, name, old)


def _open_devnull() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # a process that was started without the stream
