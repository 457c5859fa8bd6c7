"""Presets: the YAML files of settings that are shipped in ``benchmarks/presets``, found by name from any folder."""

import re
from collections.abc import Collection
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

from rlhf_core.names import nearest

PRESETS = Path(str(files("benchmarks") / "presets"))
"""The folder of the presets, in a repository or in an installed wheel."""


def preset_names() -> tuple[str, ...]:
    """What ``--config`` takes besides a file, sorted."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def presets_for(settings: Collection[str]) -> tuple[str, ...]:
    """The presets that give no setting but ``settings``, which are names without a dot: those for one command."""
    return tuple(name for name in preset_names() if _given_by(name) <= set(settings))


def _given_by(name: str) -> set[str]:
    return set(re.findall(r"^(\w+):", (PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE))


def about(name: str) -> str:
    """The description of a preset: the comment at its top."""
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def config_path(name: str) -> Path:
    """The file behind ``--config NAME``: the preset of that name, else a file of your own.

    Raises:
        ValueError: neither, and names the nearest preset and all of them; or a file that is not text.
    """
    if name in preset_names():
        return PRESETS / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        meant = nearest(path.stem, preset_names()) or "."
        raise ValueError(f"--config: no preset and no file {name!r}{meant} Presets: {', '.join(preset_names())}")
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {name}: must be a YAML file of settings: {error}") from error
    return path
