"""Standard output that may close: a run continues when nobody reads its progress bar any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, final


@final
class Lasting:
    """A text stream that discards everything once it cannot be written to (``| head``, a closed terminal, a full disk
    under a log), instead of raising an error."""

    def __init__(self, stream: Any) -> None:  # TextIO, or what stands in for it in a notebook or a test
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``; report all of it as written, even if it was discarded."""
        with self._silenced_where_it_fails():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream is still open."""
        with self._silenced_where_it_fails():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _silenced_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._stream.closed:  # text outside the stream's encoding
                raise
            failed, self._stream = self._stream, _open_devnull()
            with suppress(OSError, ValueError):  # what is left in its buffer must not fail at exit either
                os.dup2(self._stream.fileno(), failed.fileno())


def make_lasting() -> None:
    """From now on, let this process continue when its output is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Lasting):
            setattr(sys, name, Lasting(_open_devnull() if stream is None else stream))


@contextmanager
def lasting_output() -> Iterator[None]:
    """The same, inside a ``with`` block."""
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
