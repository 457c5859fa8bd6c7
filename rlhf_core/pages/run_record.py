"""Read a run's folder back for a page; the run may still be going on."""

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Figures:
    """The metrics of a run, stored by column to save memory: a page is made while a long run trains.

    ``columns`` holds, for each figure, the rows that logged it and its values there; row r is step ``steps[r]``.
    """

    steps: Sequence[int]
    columns: Mapping[str, tuple[Sequence[int], Sequence[float]]]

    def __len__(self) -> int:
        return len(self.steps)

    def values(self, name: str) -> tuple[float, ...]:
        """One figure at every step; NaN where a step left it undefined, or logged "nan"."""
        rows, logged = self.columns.get(name, ((), ()))
        values = array("d", [math.nan]) * len(self.steps)
        for row, value in zip(rows, logged, strict=True):
            values[row] = value
        return tuple(values)

    def logged(self, name: str) -> tuple[tuple[int, float], ...]:
        """Step and value of one figure, at the steps that logged it."""
        rows, logged = self.columns.get(name, ((), ()))
        return tuple((self.steps[row], value) for row, value in zip(rows, logged, strict=True))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, up to the present step.

    ``metrics`` and ``samples`` hold what stands in the files of these names. ``report`` holds what ``fit`` notes for
    the page alone; it is empty for a run of a version that wrote none.
    """

    folder: Path
    settings: Mapping[str, Any]
    metrics: Figures
    samples: tuple[Mapping[str, Any], ...]
    report: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return self.metrics.steps[-1] if self.metrics else 0

    @property
    def method(self) -> str:
        """The redistributor by its name; with its settings as Python writes them where ``fit`` noted no name."""
        return str(self.report.get("method") or self.settings.get("redistributor", "an unknown method"))

    @property
    def config(self) -> Mapping[str, Any]:
        """PPO settings."""
        found = self.settings.get("config")
        return found if isinstance(found, dict) else {}

    def has(self, name: str) -> bool:
        """Whether any step logged this figure."""
        return name in self.metrics.columns

    def values(self, name: str) -> tuple[float, ...]:
        """One figure at every step; NaN where a step left it undefined."""
        return self.metrics.values(name)

    def steps(self) -> tuple[int, ...]:
        """The steps that were logged."""
        return tuple(self.metrics.steps)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder, at any step.

    Raises:
        ValueError: no run was begun there, or a file of it is damaged; names it.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} holds no run: there is no {SETTINGS}, which fit writes when a run begins")
    report = folder / REPORT
    return RunRecord(
        folder=folder,
        settings=read_object(folder / SETTINGS),
        metrics=read_figures(folder / METRICS),
        samples=tuple(_records(folder / SAMPLES)),
        report=read_object(report) if report.is_file() else {},
    )


def as_number(value: object) -> float:
    """A logged figure as a number. "nan" and "inf" stand for numbers that JSON lacks; anything else is NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def read_figures(path: Path) -> Figures:
    """The figures in a file of metrics; none where there is no file. A last line that is being written is left out.

    Raises:
        ValueError: a line that is not a record of a step; names file and line.
    """
    steps = array("q")
    columns: dict[str, tuple[array[int], array[float]]] = {}
    for row, record in enumerate(_records(path)):
        steps.append(record.pop("step"))
        for name, value in record.items():
            rows, values = columns.setdefault(name, (array("q"), array("d")))
            rows.append(row)
            values.append(as_number(value))
    return Figures(steps=steps, columns=columns)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records in a file, one at a time, as a long run's are large together."""
    if not path.is_file():
        return
    with open_plain(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                yield {**record, "step": int(record["step"])}
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(f"{path}, line {number} is not a record of a run: {line[:80]!r}") from None
