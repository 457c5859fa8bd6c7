"""A plain table: columns, rows, notes; in the terminal and on disk."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.reporting.report import number
from benchmarks.reporting.statistics import Summary

Value = str | float | int | Summary | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values under column names; None is undefined."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"Table {self.title!r}: {len(row)} values for {len(self.columns)} columns: {row}")


def text(value: Value) -> str:
    """A value as it is read: three significant digits, an interval in brackets, "–" where undefined."""
    if value is None:
        return "–"
    if isinstance(value, Summary):
        return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"
    return number(value) if isinstance(value, float) else str(value)


def write(table: Table, folder: Path, name: str = "table") -> None:
    """``NAME.md`` to read and ``NAME.csv`` (an interval as three columns) to compute on."""
    (folder / f"{name}.md").write_text(markdown(table), encoding="utf-8")
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        spread = [any(isinstance(row[i], Summary) for row in table.rows) for i in range(len(table.columns))]
        writer.writerow(
            [
                part
                for column, wide in zip(table.columns, spread, strict=True)
                for part in ((column, f"{column} low", f"{column} high") if wide else (column,))
            ]
        )
        for row in table.rows:
            writer.writerow([part for value, wide in zip(row, spread, strict=True) for part in _parts(value, wide)])


def _parts(value: Value, wide: bool) -> tuple[object, ...]:
    if isinstance(value, Summary):
        return value.mean, value.low, value.high
    return (value, None, None) if wide else (value,)


def markdown(table: Table) -> str:
    """The table and its notes for a document."""
    lines = [_line(table.columns), _line(["---", *("---:" for _ in table.columns[1:])])]
    lines += [_line([text(value) for value in row]) for row in table.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def show(table: Table, console: Console) -> None:
    """In the terminal, the shorter side across, in blocks of as many columns as it holds; names of arms and panels are
    never read as markup."""
    cells = [list(table.columns), *([text(value) for value in row] for row in table.rows)]
    labels = 1
    if len(cells) < len(table.columns):
        cells = [list(line) for line in zip(*cells, strict=True)]
    elif table.rows:
        labels = next((i for i, value in enumerate(table.rows[0]) if not isinstance(value, str)), 1) or 1
    stacked = [[cell.replace(" [", "\n[") for cell in row] for row in cells]
    console.print(Text(table.title))
    for columns in _blocks(stacked, labels, console.width):
        drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for index in columns:
            drawn.add_column(Text(stacked[0][index]), justify="right" if index else "left", overflow="fold")
        for row in stacked[1:]:
            drawn.add_row(*(Text(row[index]) for index in columns))
        console.print(drawn)
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)


def _blocks(cells: Sequence[Sequence[str]], labels: int, width: int) -> Iterator[list[int]]:
    """Columns side by side: the first ``labels`` in every block, and of the rest what fits beside them unbroken.

    A heading is broken at its spaces, so its longest word counts.
    """
    head, *body = cells
    needs = [
        3 + max(len(part) for part in (*head[i].split(), *(line for row in body for line in row[i].splitlines())))
        for i in range(len(head))
    ]
    start = labels
    while start < len(head):
        end = start + 1
        while end < len(head) and sum(needs[:labels]) + sum(needs[start : end + 1]) <= width:
            end += 1
        yield [*range(labels), *range(start, end)]
        start = end
