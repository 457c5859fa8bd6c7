"""Check that a command may write to its out folder, before anything heavy is imported."""

from pathlib import Path
from typing import Any


def is_free(folder: Path) -> bool:
    """Whether there is nothing at ``folder`` that could be lost."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def require_free(settings: Any) -> None:
    """Raise FileExistsError unless ``settings.out`` is free, or ``settings.overwrite`` is set."""
    if not settings.overwrite and not is_free(Path(settings.out)):
        raise FileExistsError(f"{settings.out} is not empty; choose another --out, or pass --overwrite true")
