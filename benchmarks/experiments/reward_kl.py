"""Reward against KL, as in the paper's figure 5, and the reward where KL first reaches fixed levels."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.settings import RewardKL
from benchmarks.reporting import figures, tables
from benchmarks.reporting.curve_readings import at_level, blocks
from benchmarks.reporting.paper_curves import paper_curves
from benchmarks.reporting.tables import Table, number
from benchmarks.runs.comparison import ComparisonResults
from benchmarks.runs.experiment import Experiment, published
from rlhf_core.names import counted


@figures.style()
def draw(done: ComparisonResults, options: RewardKL) -> Figure:
    """Every arm's mean line with a dot at its end, and light dots for blocks of single runs."""
    results, file = done.only, done.settings.paper_curves
    kl_of, score_of = (paper_curves(file, results.task, name) for name in ("kl", "reward"))
    figure = figures.grid(1, width=4.6)
    (axes,) = figure.axes
    for arm, (colour, _) in figures.line_styles(results.arms).items():
        kl, score = (blocks(results.curves[arm][metric], options.block) for metric in ("kl", "score"))
        axes.plot(kl.ravel(), score.ravel(), ".", color=colour, markersize=2, alpha=0.25)
        figures.path(axes, kl.mean(0), score.mean(0), results, arm)
        if arm in kl_of and arm in score_of:
            theirs = (blocks(curves[arm], options.block).mean(0) for curves in (kl_of, score_of))
            axes.plot(*theirs, color=colour, linewidth=0.7, alpha=0.45)
    coefficient = done.config.kl.init_coef
    low, high = axes.get_xlim()
    nats = np.array([max(0.0, low), high])
    axes.plot(nats, coefficient * nats, color="0.6", linestyle="--", linewidth=0.7)
    above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axes.annotate(f"{coefficient:g} · KL", (nats[1], coefficient * nats[1]), fontsize=6.5, color="0.4", **above)
    axes.set_xlim(low, high)
    figures.value_axis(axes, "KL to the reference (nats per response)")
    axes.set_ylabel("score")
    over = f"{results.counted_seeds} and {counted(options.block, 'step')}"
    title = f"{results.task} (means over {over}; dots: single runs)"
    figures.legend(figure, axes, title)
    return figure


def table(done: ComparisonResults, options: RewardKL) -> Table:
    """Score where KL first reaches each level, read both ways."""
    results, rows = done.only, []
    for arm in results.arms:
        found = [at_level(results.curves[arm], level) for level in options.levels]
        per_run = ["–" if one.per_run is None else f"{tables.text(one.per_run)} ({one.runs})" for one in found]
        rows.append((arm, *(cell for one, runs in zip(found, per_run, strict=True) for cell in (one.on_means, runs))))
    columns = [f"{number(level)} nats, {reading}" for level in options.levels for reading in ("on means", "per run")]
    note = (
        "On means: where the mean over seeds first reaches the level. Per run: mean [interval, or range below 4 runs] "
        "over the runs that reach it (how many); – where none does."
    )
    title = f"{results.task}: score where KL first reaches a level"
    return Table(title=title, columns=("arm", *columns), rows=tuple(rows), notes=(note,))


EXPERIMENT = Experiment(write=published("frontier", table, draw), folder="reward_kl")
