"""Model libraries without their progress bars and remarks: a command says itself what it does."""

from transformers.utils import logging


def quiet_libraries() -> None:
    """No bar for every model file that is read, and errors only."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves both untyped
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
