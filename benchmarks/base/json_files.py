"""Values as plain JSON, files that are written whole or not at all, and fingerprints of both."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_core.files.plain_files import replace, unfinished


def jsonable(value: object) -> Any:
    """Dataclasses, tuples, paths and sets as plain JSON values, so that what is compared is what is read back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot record a {type(value).__name__}: {value!r}")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically: after a crash the file has the old or the new content, never a part.

    Raises:
        OSError: the disk is full or faulty; names the file and says what to do.
    """
    content = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        replace(path, content.encode())
    finally:  # what a full disk left
        path.with_name(unfinished(path.name)).unlink(missing_ok=True)


def fingerprint(parts: Iterable[str | Path]) -> str:
    """SHA-256 over texts and file contents, in order; each is length-prefixed, so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()
