"""Silence the progress bars and remarks of model libraries; commands report their own progress."""

import logging

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Show no progress bars for model files, and log only errors."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves both untyped
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
