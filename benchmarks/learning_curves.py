"""Learning curves as in the paper's figures 3 and 6 (left): reward per step ± standard deviation, one panel beside it.

``positive_generation``, ``summarisation`` and ``dialogue`` are this script with their own defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting import figures
from benchmarks.reporting.outcomes import LAST, Threshold, best_of_mean, failed, steps_to_pass, threshold
from benchmarks.reporting.paper_curves import of_arms, paper_curves, require_same_task
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.report import compare, number
from benchmarks.reporting.statistics import Results, summarise, variance_across_seeds
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import Script, Study

REFERENCE = "sparse"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is called a failure."""

    failed_below: float | None = None
    """Mean score of the last 10 steps below which a run failed (paper: 6); null: midway from start to the best arm."""


def write(study: Study, options: Options, out: Path, console: Console) -> None:
    """curves.png and .pdf, table.md and .csv."""
    require_same_task(study.settings.paper_curves, study.only.task)
    table = summary(study.only, threshold(study.only, options.failed_below))
    publish(table, {"curves": draw(study)}, out, console)


def draw(study: Study) -> Figure:
    """Score, value loss, KL and length per step, the paper's means behind."""
    results, file = study.only, study.settings.paper_curves
    theirs = {
        metric: of_arms(paper_curves(file, results.task, name), results)
        for metric, name in (("score", "reward"), ("value_loss_paper", "value_loss"), ("kl", "kl"))
    }
    with figures.style():
        figure = figures.grid(4)
        for axes, metric in zip(figure.axes, ("score", "value_loss_paper", "kl", "length"), strict=True):
            figures.behind(axes, theirs.get(metric, {}))
            figures.panel(axes, results, metric, edges=figures.standard_deviations)
        behind = "; thin: the paper's means" if any(theirs.values()) else ""
        title = f"{results.task} (line: mean, band: ± standard deviation; seeds: {len(results.seeds)}{behind})"
        figures.legend(figure, figure.axes[0], title)
    return figure


def summary(results: Results, limit: Threshold) -> Table:
    """What the paper's text says of figure 3, for every arm."""
    best, at = best_of_mean(results.curves[REFERENCE]["score"]) if REFERENCE in results.curves else (None, None)
    differences: Mapping[str, Any] = compare(results)
    rows = []
    for arm in results.arms:
        score = results.curves[arm]["score"]
        passed = None if best is None else steps_to_pass(score, best)
        difference = differences.get(arm)
        rows.append(
            (
                arm,
                summarise(results.per_seed(arm, "score")),
                None if difference is None else float(difference.mean),
                None if difference is None or difference.p_holm is None else float(difference.p_holm),
                variance_across_seeds(score) ** 0.5,
                "never" if passed is None else str(passed),
                summarise(results.per_seed(arm, "score", LAST)),
                f"{failed(results, arm, limit)} of {len(results.seeds)}",
                summarise(results.per_seed(arm, "kl", LAST)),
                summarise(results.per_seed(arm, "length", LAST)),
            )
        )
    columns = (
        *("arm", "average score", f"paired difference to {REFERENCE}", "p (Holm)", "std over seeds"),
        *(
            f"step past {REFERENCE}'s best",
            f"score, last {LAST}",
            "failed runs",
            f"KL, last {LAST}",
            f"length, last {LAST}",
        ),
    )
    notes = [f"Failed: last {LAST} steps average below {number(limit.value)} ({limit.why})."]
    if best is not None:
        notes.append(f"{REFERENCE}'s best seed mean is {number(best)}, at step {at}; a mean over few seeds is noisy.")
    return Table(title=results.task, columns=columns, rows=tuple(rows), notes=tuple(notes))


def script(name: str, figure: str, **defaults: Any) -> Script:
    """This script for one task."""
    return Script(
        name=name,
        summary=f"Learning curves of redistributors on paired seeds ({figure} of the paper): reward, value loss, KL "
        "and length per step with standard-deviation bands, and steps to pass sparse's best. PPO settings: --ppo.NAME.",
        write=write,
        options=Options,
        defaults=defaults,
    )


SCRIPT = script("learning_curves", "figures 3 and 6, left")

if __name__ == "__main__":
    SCRIPT.main()
