"""Write a script's table and figures to its folder, and show the table."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting import figures, tables
from benchmarks.reporting.tables import Table


def publish(table: Table, drawn: Mapping[str, Figure], out: Path, console: Console, *, name: str = "table") -> None:
    """NAME.md and .csv, every figure as its own name's .png and .pdf; the table on the console."""
    tables.write(table, out, name)
    saved = [file.name for title, figure in drawn.items() for file in figures.save(figure, out, title)]
    tables.show(table, console)
    files = ", ".join([f"{name}.md", f"{name}.csv", *saved])
    console.print(f"written to {out}: {files}", markup=False, highlight=False)
