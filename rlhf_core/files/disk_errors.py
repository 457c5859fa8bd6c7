"""The error for a file of a run that cannot be written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def told_where_unwritable(path: Path) -> Iterator[None]:
    """Turn any OSError inside into one of the same kind that names ``path``, the free space and what to do."""
    try:
        yield
    except OSError as error:
        words = f"{path} cannot be written: {error.strerror or error}; {_room(path)}. {WAY_OUT}"
        raise OSError(error.errno, words) from error


WAY_OUT = (
    "What was written before is intact: put that right, and go on from the last checkpoint with fit(..., resume=True), "
    "or a script with the same command"
)


def _room(path: Path) -> str:
    above = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return "its folder is gone" if above is None else f"{shutil.disk_usage(above).free / 2**20:.1f} MiB are free there"
