"""The right to work in a folder, for one process at a time; a process that dies gives it back."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to run in ``folder``, which may be deleted and made again meanwhile: the lock is a file beside it, and
    is gone when the run is.

    Raises:
        FileExistsError: another process has it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = _lock(path)
    if descriptor is None:
        raise FileExistsError(f"another process works in {folder}; wait for it, or choose another --out")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: see below
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """The file at ``path``, opened and held; None where another process holds it.

    Whoever ends removes its file. A process that opened that file before may come to hold it when it bears no name any
    more, and a third could then hold a new one of the same name: so it looks again, and opens the new one instead.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        held = hold(descriptor)
        if held and _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)
        if not held:
            return None


def hold(descriptor: int) -> bool:
    """Whether this process now holds an open file or folder alone, until it closes it or dies."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def held_folder(folder: Path) -> Iterator[bool]:
    """Whether this process holds ``folder``, for as long as the block lasts; False where there is none any more."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        yield hold(descriptor) and _is_at(folder, descriptor)
    finally:
        os.close(descriptor)
