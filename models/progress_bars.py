"""transformers' progress bars: shown while a person waits for weights to be read, never while they are written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers inside; afterwards they are as they were."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves both untyped
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def bars_where_watched() -> Iterator[None]:
    """transformers' progress bars as they are on a terminal; none in a file or a pipe, where each is a wall of text."""
    with nullcontext() if sys.stderr is not None and sys.stderr.isatty() else without_bars():
        yield


def save_without_bars(model: PreTrainedModel, folder: str | Path) -> None:
    """``model.save_pretrained(folder)`` without a bar of its own: a run saves in the middle of its own progress."""
    with without_bars():
        model.save_pretrained(folder)
