"""How much of the score follows the credit: the paper's figure 7, beta from 0 (sparse) to 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting import figures
from benchmarks.reporting.outcomes import LAST
from benchmarks.reporting.paper_curves import paper_curves, require_same_task
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Results, summarise
from benchmarks.reporting.tables import Table
from benchmarks.runs.arms import parse_arms
from benchmarks.runs.comparison import Comparison, Panel, Script, Study


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which shares, of which method."""

    method: str = "abc"
    """Redistributor that takes a beta."""
    betas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Shares of the score that follow the credit; 0 is sparse."""

    def __post_init__(self) -> None:
        if not self.betas or len(set(self.betas)) < len(self.betas) or not all(0 <= beta <= 1 for beta in self.betas):
            raise ValueError(f"betas must be different shares between 0 and 1, got {self.betas}")


def panels(_: Comparison, options: Options) -> Sequence[Panel]:
    """One panel whose arms are the betas."""
    return [Panel(arms=parse_arms([arm(options, beta) for beta in options.betas]))]


def arm(options: Options, beta: float) -> str:
    """An arm, as it is written on the command line."""
    return f"{options.method}(beta={beta:g})"


def write(study: Study, options: Options, out: Path, console: Console) -> None:
    """betas.png and .pdf, table.md and .csv."""
    require_same_task(study.settings.paper_curves, study.settings.task)
    publish(summary(study.only, options), {"betas": draw(study, options)}, out, console)


def draw(study: Study, options: Options) -> Figure:
    """Average score, KL and length over beta: single runs, means, and ± one standard deviation as in the paper."""
    results = study.only
    theirs = paper_curves(study.settings.paper_curves, "beta_sweep")
    with figures.style():
        figure = figures.grid(3)
        for axes, metric in zip(figure.axes, ("score", "kl", "length"), strict=True):
            last = None if metric == "score" else LAST
            values = np.stack([results.per_seed(name, metric, last) for name in results.arms])
            colour = figures.COLOURS.get(options.method, "#000000")
            axes.plot(options.betas, values, ".", color=colour, markersize=3, alpha=0.4)
            axes.errorbar(options.betas, values.mean(1), values.std(1), color=colour, capsize=2, linewidth=1.2)
            axes.set_title(figures.TITLES[metric] + (", average" if last is None else f", last {last}"), loc="left")
            axes.set_xlabel("beta")
            if metric == "score" and theirs:
                betas = sorted(theirs, key=float)
                means = [theirs[beta].mean() for beta in betas]
                axes.plot([float(beta) for beta in betas], means, color="0.5", linewidth=0.7, label="the paper's means")
                axes.legend(frameon=False)
        figure.suptitle(
            f"{results.task}, {options.method} (dots: {len(results.seeds)} runs; line: mean ± standard deviation)",
            fontsize=7.5,
            x=0.01,
            ha="left",
        )
    return figure


def summary(results: Results, options: Options) -> Table:
    """A row for every beta."""
    rows = tuple(
        (
            float(beta),
            summarise(results.per_seed(name, "score")),
            float(results.per_seed(name, "score").std()),
            summarise(results.per_seed(name, "score", LAST)),
            summarise(results.per_seed(name, "kl", LAST)),
            summarise(results.per_seed(name, "length", LAST)),
        )
        for beta, name in zip(options.betas, results.arms, strict=True)
    )
    columns = (
        "beta",
        "average score",
        "std over seeds",
        f"score, last {LAST}",
        f"KL, last {LAST}",
        f"length, last {LAST}",
    )
    return Table(title=f"{results.task}: {options.method} by beta", columns=columns, rows=rows)


SCRIPT = Script(
    name="beta_sweep",
    summary="Sweep beta, the share of the score that follows the credit (figure 7 of the paper). PPO settings are "
    "--ppo.NAME; --redistributors and --controls are not used.",
    write=write,
    panels=panels,
    options=Options,
)

if __name__ == "__main__":
    SCRIPT.main()
