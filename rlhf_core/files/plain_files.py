"""Safe access to folders that others may have changed: read regular files only, follow no links, write files whole."""

import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from rlhf_core.files.disk_errors import told_where_unwritable

LARGEST = 64 * 2**20
"""Bytes of JSON that are read at most; what a run writes about itself is far smaller."""


def open_plain(path: Path) -> BufferedReader:
    """Open ``path`` for reading, without blocking on pipes or devices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a link, or not a regular file.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link; put the file itself there")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, whose numbers are all finite.

    Raises:
        FileNotFoundError: there is none.
        ValueError: anything else, naming the file.
    """
    try:
        with open_plain(path) as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST} bytes, which no run writes")
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(found).__name__}")
    return found


def replace(path: Path, content: bytes) -> None:
    """Write ``path``, whole or not at all."""
    temporary = path.with_name(unfinished(path.name))
    with told_where_unwritable(path):
        temporary.write_bytes(content)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)


def unfinished(name: str) -> str:
    """The name of a file while ``replace`` writes it."""
    return f".{name}.unfinished"


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is a number that a run never writes")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
