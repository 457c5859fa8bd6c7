"""What a run's folder says about it, read back for a page; the run may be going on."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.files.plain_files import open_plain, read_object

SETTINGS, METRICS, SAMPLES, REPORT, PAGE = (
    "settings.json",
    "metrics.jsonl",
    "samples.jsonl",
    "report.json",
    "report.html",
)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, as far as it has come.

    ``metrics`` and ``samples`` hold the lines of the files of these names; ``report`` holds what ``fit`` notes for the
    page alone, and is empty for a run of a version that wrote none.
    """

    folder: Path
    settings: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    report: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def method(self) -> str:
        """The redistributor with its settings."""
        return str(self.settings.get("redistributor", "an unknown method"))

    @property
    def config(self) -> Mapping[str, Any]:
        """PPO settings."""
        found = self.settings.get("config")
        return found if isinstance(found, dict) else {}

    def has(self, name: str) -> bool:
        """Whether any step logged this figure."""
        return any(name in line for line in self.metrics)

    def values(self, name: str) -> tuple[float, ...]:
        """One figure at every step; NaN where a step left it undefined."""
        return tuple(as_number(line.get(name)) for line in self.metrics)

    def steps(self) -> tuple[int, ...]:
        """The steps that were logged."""
        return tuple(int(line["step"]) for line in self.metrics)


def read_run(folder: Path) -> RunRecord:
    """A run's folder, at whatever step it is.

    Raises:
        ValueError: no run was begun there, or a file of it is damaged; names it.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} holds no run: there is no {SETTINGS}, which fit writes when a run begins")
    report = folder / REPORT
    return RunRecord(
        folder=folder,
        settings=read_object(folder / SETTINGS),
        metrics=_lines(folder / METRICS),
        samples=_lines(folder / SAMPLES),
        report=read_object(report) if report.is_file() else {},
    )


def as_number(value: object) -> float:
    """A logged figure; "nan" and the like stand for numbers that JSON has not, and what is no number is NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def _lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The records in a file, () where there is none; a last line that is still being written is left out."""
    if not path.is_file():
        return ()
    with open_plain(path) as file:
        *lines, _ = file.read().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found.append({**record, "step": int(record["step"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path}, line {number} is no record of a run: {line[:80]!r}") from None
    return tuple(found)
