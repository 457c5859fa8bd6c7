"""A plain table: columns, rows, notes and one sentence; in the terminal and on disk."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.reporting.statistics import Difference, Summary

Value = str | float | int | Summary | Difference | None
GAP, LABEL, WORD = 3, 26, 16
"""Cells between two columns of a terminal; a label is folded beyond so many, a heading's word beyond so many."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values under column names; None is undefined. ``verdict`` is what the rows allow to be said."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    parts: Mapping[int, str] = field(default_factory=dict)
    """Headings within the table, by the number of the row that they stand above."""
    notes: tuple[str, ...] = ()
    verdict: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"Table {self.title!r}: {len(row)} values for {len(self.columns)} columns: {row}")


def number(value: float) -> str:
    """Three significant digits, at most four decimals from 0.001 on; "–" where undefined, and never "-0"."""
    if math.isnan(value):
        return "–"
    rounded = float(f"{value:.3g}")  # first, or 0.9999 would be given a digit more than 1
    if rounded == 0 or 1e-3 <= abs(rounded) < 1e5:
        digits = 0 if rounded == 0 else max(0, 2 - math.floor(math.log10(abs(rounded))))
        return f"{value:z.{min(digits, 4)}f}"
    return f"{value:.3g}"


def text(value: Value) -> str:
    """A value as it is read: three significant digits, its interval or range in brackets, where it has a
    width; "–" where undefined."""
    if value is None:
        return "–"
    if not isinstance(value, Summary | Difference):
        return number(value) if isinstance(value, float) else str(value)
    if value.low is None or value.high is None or math.isnan(value.low) or value.low == value.high:
        return number(value.mean)
    return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"


def write(table: Table, folder: Path, name: str = "table") -> None:
    """``NAME.md`` to read and ``NAME.csv`` (an interval as three columns) to compute on."""
    (folder / f"{name}.md").write_text(markdown(table), encoding="utf-8")
    columns: list[list[object]] = []
    for heading, *values in zip(table.columns, *table.rows, strict=True):
        columns.append([heading, *(getattr(value, "mean", value) for value in values)])
        if any(isinstance(value, Summary | Difference) for value in values):
            for end in ("low", "high"):
                columns.append([f"{heading} {end}", *(getattr(value, end, None) for value in values)])
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(zip(*columns, strict=True))


def markdown(table: Table) -> str:
    """The table, its verdict and its notes for a document."""
    lines = [_line(table.columns), _line(["---", *("---:" for _ in table.columns[1:])])]
    for place, row in enumerate(table.rows):
        if place in table.parts:
            lines.append(_line([f"**{table.parts[place]}**", *("" for _ in row[1:])]))
        lines.append(_line([text(value) for value in row]))
    said = [table.verdict, ""] if table.verdict else []
    return "\n".join([*lines, "", *said, *(f"- {note}" for note in table.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def show(table: Table, console: Console) -> None:
    """In the terminal, the shorter side across, in blocks of as many columns as it holds with every number whole; names
    of arms and panels are never read as markup."""
    cells = [list(table.columns), *([text(value) for value in row] for row in table.rows)]
    labels = 1
    if len(cells) < len(table.columns):
        cells = [list(line) for line in zip(*cells, strict=True)]
    elif table.rows:
        labels = next((i for i, value in enumerate(table.rows[0]) if not isinstance(value, str)), 1) or 1
        for place in sorted(table.parts, reverse=True):
            cells.insert(place + 1, [f"({table.parts[place]})", *("" for _ in table.columns[1:])])
    stacked = [[cell.replace(" [", "\n[") for cell in row] for row in cells]
    if table.title:
        console.print(Text(table.title))
    for columns in _blocks(stacked, labels, console.width):
        console.print(_drawn(stacked, columns, labels, console.width))
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    if table.verdict:
        console.print(f"\n{table.verdict}\n", style="bold", markup=False, highlight=False)


def _drawn(cells: Sequence[Sequence[str]], columns: Sequence[int], labels: int, width: int) -> RichTable:
    """One block. Where it is as wide as the terminal, numbers keep the room they need and labels are folded."""
    head, *body = cells
    lines = [max(cell_len(line) for row in cells for line in (row[i].splitlines() or [""])) for i in columns]
    tight = sum(GAP + line for line in lines) > width
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(head[i] for i in columns))
    for index in columns:
        needed = _need(cells, index, label=False) - GAP if tight and index >= labels else None
        drawn.add_column(Text(head[index]), justify="right" if index else "left", overflow="fold", width=needed)
    for row in body:
        drawn.add_row(*(Text(row[index]) for index in columns))
    return drawn


def _blocks(cells: Sequence[Sequence[str]], labels: int, width: int) -> Iterator[list[int]]:
    """Columns side by side: the first ``labels`` in every block, and of the rest what fits beside them unbroken."""
    needs = [_need(cells, index, label=index < labels) for index in range(len(cells[0]))]
    start = labels
    while start < len(needs):
        end = start + 1
        while end < len(needs) and sum(needs[:labels]) + sum(needs[start : end + 1]) <= width:
            end += 1
        yield [*range(labels), *range(start, end)]
        start = end


def _need(cells: Sequence[Sequence[str]], column: int, *, label: bool) -> int:
    """Cells that a column takes; a wide character takes two. A heading is broken at its spaces, so its longest word
    counts; a label may be folded."""
    head, *body = (row[column] for row in cells)
    words = max(map(cell_len, head.split()), default=0)
    lines = max((cell_len(line) for cell in body for line in cell.splitlines()), default=0)
    return GAP + max(min(words, WORD), min(lines, LABEL) if label else lines)
