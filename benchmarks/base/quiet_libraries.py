"""Silence the progress bars and remarks of model libraries; commands report their own progress."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

BITSANDBYTES = logging.getLogger("bitsandbytes")


def quiet_libraries() -> None:
    """For the rest of this process, show no progress bars for model files, and log only errors."""
    BITSANDBYTES.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves both untyped
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@contextmanager
def quietly() -> Iterator[None]:
    """The same inside only: a script that calls our functions keeps the bars and loggers that it had."""
    level, verbosity = BITSANDBYTES.level, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    quiet_libraries()
    try:
        yield
    finally:
        BITSANDBYTES.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
