"""Model libraries without their progress bars and remarks: a command says itself what it does."""

import logging

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """No bar for every model file that is read, and errors only."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves both untyped
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
