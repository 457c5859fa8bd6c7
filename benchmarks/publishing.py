"""A script's table and figures, written to its folder and shown."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import figures, tables
from benchmarks.tables import Table


def publish(table: Table, drawn: Mapping[str, Figure], out: Path, console: Console) -> None:
    """table.md and .csv, every figure as NAME.png and .pdf; the table on the console."""
    tables.write(table, out)
    for name, figure in drawn.items():
        figures.save(figure, out, name)
    tables.show(table, console)
    names = ", ".join(["table.md", "table.csv", *(f"{name}.{kind}" for name in drawn for kind in ("png", "pdf"))])
    console.print(f"written to {out}: {names}", markup=False, highlight=False)
