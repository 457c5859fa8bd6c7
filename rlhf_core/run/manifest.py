"""The proof that a folder is complete and unchanged: a list of its files with sizes and hashes, written last."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf_core.files.plain_files import flush, open_plain, read_object

NAME = "manifest.json"
FORMAT = 1


def seal(folder: Path) -> None:
    """Flush every file of ``folder`` to disk, then write the manifest that lists them."""
    files = {}
    for path in _entries(folder):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        flush(path)
    manifest = folder / NAME
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n", encoding="utf-8")
    flush(manifest)
    flush(folder)


def why_not_whole(folder: Path) -> str:  # noqa: PLR0911  # one return a reason
    """The first difference between ``folder`` and its manifest, in words; empty if there is none.

    Nothing but the manifest is read before every name in it has been seen to stay inside the folder, and of that only
    regular files, of the size that is stated; links are not followed.
    """
    if folder.is_symlink():
        return "it is a link; put the folder itself there"
    try:
        manifest = read_object(folder / NAME)
    except FileNotFoundError:
        return f"it has no {NAME}, so it was never finished"
    except ValueError as error:
        return f"its {NAME} cannot be read ({error})"
    if manifest.get("format") != FORMAT:
        return f"its {NAME} has format {manifest.get('format')!r}, and this version reads {FORMAT}"
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not all(_describes_a_file(entry) for entry in listed.values()):
        return f"its {NAME} lists no files with sizes and hashes"
    outside = [name for name in listed if not _stays_inside(name)]
    if outside:
        return f"its {NAME} names {outside[0]!r}, which lies outside of the folder"
    return _difference(folder, listed)


def _difference(folder: Path, listed: dict[str, dict[str, Any]]) -> str:  # noqa: PLR0911
    present = {path.relative_to(folder).as_posix(): path for path in _entries(folder)}
    for name, path in present.items():
        if path.is_symlink():
            return f"{name} is a link"
        if not path.is_file() and not path.is_dir():
            return f"{name} is not a regular file"
        if path.is_file() and name not in listed and name != NAME:
            return f"{name} is not in its {NAME} (move it away)"
    for name, entry in listed.items():
        if name not in present or not present[name].is_file():
            return f"{name} is missing"
        size = present[name].stat().st_size
        if size != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
        if _sha256(present[name]) != entry["sha256"]:
            return f"{name} has changed since it was written (sha256)"
    return ""


def _entries(folder: Path) -> Iterator[Path]:
    """Everything under ``folder``; links are not followed."""
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in sorted((*folders, *files)))


def _describes_a_file(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _sha256(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
