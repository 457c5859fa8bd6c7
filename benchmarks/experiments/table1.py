"""The paper's table 1: average reward of every task and method with 95 % intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.base.run_folder import read_record
from benchmarks.experiments.settings import TableOne
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.paper_curves import paper_curves
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Results, summarise
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import MADE_BY
from benchmarks.runs.finished_runs import finished_curves

STEPS = 101
"""Steps that the paper's averages run over (recomputed from its curves)."""


def read(folder: Path) -> Results:
    """The finished runs of a comparison.

    Raises:
        ValueError: it is not a comparison, or none of its runs has finished.
    """
    record = read_record(folder)
    if record.get("made_by") != MADE_BY:
        raise ValueError(f"{folder} was made by {record.get('made_by')}, not by a comparison")
    settings = record["settings"]
    return finished_curves(settings["task"], folder / "runs", paired=settings.get("seeds_of") is None)


def table(found: Sequence[Results], settings: TableOne) -> Table:
    """A row for every comparison and arm, with length and KL beside the reward."""
    rows = []
    for results in found:
        theirs = paper_curves(settings.paper_curves, results.task, "reward")
        for arm in results.arms:
            score = results.curves[arm]["score"]
            ours = summarise(score[:, : settings.steps].mean(1))
            spent = [column(results, arm) for column in arm_columns.LAST_KL_AND_LENGTH.values()]
            rows.append((results.task, arm, len(score), ours, *spent, _papers(theirs[arm]) if arm in theirs else None))
    costs = arm_columns.headings(arm_columns.LAST_KL_AND_LENGTH, *found)
    columns = ("task", "arm", "seeds", "average score", *costs, f"paper, {STEPS} steps")
    note = (
        f"Ours: mean over {'all' if settings.steps is None else f'the first {settings.steps}'} steps, 95 % t-interval "
        "over seeds (range below 4). The paper's: recomputed from its curves, ± 2 standard errors (ddof 0), as its "
        "authors did. Scores of different reward models are not comparable."
    )
    return Table(title="average reward", columns=columns, rows=tuple(rows), notes=(note,))


def _papers(curve: np.ndarray) -> str:
    values = curve[:, :STEPS].mean(1)
    return f"{values.mean():z.2f} ± {2 * values.std() / np.sqrt(len(values)):.2f}"


@figures.style()
def draw(found: Sequence[Results], settings: TableOne) -> Figure:
    """A dot and its interval for every arm, a panel for every comparison."""
    figure = figures.grid(len(found), columns=len(found))
    for axes, results in zip(figure.axes, found, strict=True):
        for place, (arm, (colour, _)) in enumerate(figures.line_styles(results.arms).items()):
            score = summarise(results.curves[arm]["score"][:, : settings.steps].mean(1))
            axes.plot([score.low, score.high], [place, place], color=colour)
            axes.plot([score.mean], [place], "o", color=colour, markersize=4)
        axes.set_yticks(range(len(results.arms)), labels=results.arms)
        axes.invert_yaxis()
        axes.set_title(f"{results.task}: average score", loc="left")
        figures.value_axis(axes, "score")
    return figure


def run(settings: TableOne) -> None:
    """Read the comparisons, and write and show the table and its figure; raises like :func:`read`."""
    found = [read(folder) for folder in settings.folders()]
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    publish(table(found, settings), {"table1": draw(found, settings)}, out, Console())
