"""How much of the score follows the credit: the paper's figure 7, beta from 0 (sparse) to 1."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.settings import BetaSweep
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import LAST, last_steps
from benchmarks.reporting.paper_curves import paper_curves
from benchmarks.reporting.tables import Table
from benchmarks.runs.arms import parse_arms
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.experiment import Experiment, published
from benchmarks.runs.settings import ComparisonSettings
from rlhf_core.names import counted

COLUMNS: arm_columns.Columns = {
    **arm_columns.AVERAGE_SCORE,
    "std over seeds": lambda results, arm: float(results.per_seed(arm, "score").std()),
    **arm_columns.LAST_SCORE,
    **arm_columns.LAST_KL_AND_LENGTH,
}


def panels(_: ComparisonSettings, options: BetaSweep) -> Sequence[Panel]:
    """One panel whose arms are the betas."""
    return [Panel(arms=parse_arms([f"{options.method}(beta={beta:g})" for beta in options.betas]))]


@figures.style()
def draw(done: ComparisonResults, options: BetaSweep) -> Figure:
    """Average score, KL and length over beta: single runs, means, and ± one standard deviation as in the paper."""
    results = done.only
    theirs = paper_curves(done.settings.paper_curves, "beta_sweep")
    figure = figures.grid(3)
    for axes, metric in zip(figure.axes, ("score", "kl", "length"), strict=True):
        last = None if metric == "score" else LAST
        values = np.stack([results.per_seed(name, metric, last) for name in results.arms])
        colour = figures.COLOURS.get(options.method, "#000000")
        axes.plot(options.betas, values, ".", color=colour, markersize=3, alpha=0.4)
        axes.errorbar(options.betas, values.mean(1), values.std(1), color=colour, capsize=2, linewidth=1.2)
        axes.set_title(
            figures.TITLES[metric] + (", average" if last is None else f", last {last_steps(results)}"), loc="left"
        )
        axes.set_xlabel("beta")
        if metric == "score" and theirs:
            betas = sorted(theirs, key=float)
            means = [theirs[beta].mean() for beta in betas]
            axes.plot([float(beta) for beta in betas], means, color="0.5", linewidth=0.7, label="the paper's means")
            axes.legend(frameon=False)
    said = f"dots: {counted(len(results.seeds), 'run')}; line: mean ± standard deviation"
    figure.suptitle(f"{results.task}, {options.method} ({said})", fontsize=7.5, x=0.01, ha="left")
    return figure


def table(done: ComparisonResults, options: BetaSweep) -> Table:
    """A row for every beta."""
    arms = zip(options.betas, arm_columns.rows(COLUMNS, done.only), strict=True)
    rows = tuple((float(beta), *cells) for beta, (_, *cells) in arms)
    columns = ("beta", *arm_columns.headings(COLUMNS, done.only))
    return Table(title=f"{done.only.task}: {options.method} by beta", columns=columns, rows=rows)


EXPERIMENT = Experiment(write=published("betas", table, draw), folder="beta_sweep", panels=panels)
