"""Learning curves as in the paper's figures 3 and 6 (left), which several commands draw."""

from matplotlib.figure import Figure

from benchmarks.experiments.settings import LearningCurves
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import REFERENCE, best_of_mean, last_steps, steps_to_pass, threshold
from benchmarks.reporting.paper_curves import paper_curves
from benchmarks.reporting.primary_outcome import differences_to_reference
from benchmarks.reporting.statistics import Results
from benchmarks.reporting.tables import Table, Value, number
from benchmarks.runs.comparison import ComparisonResults
from benchmarks.runs.experiment import Experiment, published

PANELS = {"score": "reward", "value_loss_paper": "value_loss", "kl": "kl", "length": "length"}
"""Metrics that are drawn, and what the paper's curves call them."""


@figures.style()
def draw(done: ComparisonResults, _: LearningCurves) -> Figure:
    """Score, value loss, KL and length per step, the paper's means behind."""
    results, file = done.only, done.settings.paper_curves
    figure = figures.grid(4)
    for axes, (metric, theirs) in zip(figure.axes, PANELS.items(), strict=True):
        figures.behind(axes, results, paper_curves(file, results.task, theirs))
        figures.panel(axes, results, metric, edges=figures.standard_deviations)
    behind = "; thin: the paper's means" if paper_curves(file, results.task, "reward") else ""
    title = f"{results.task} (line: mean, band: ± standard deviation; seeds: {results.how_many}{behind})"
    figures.legend(figure, figure.axes[0], title)
    return figure


def table(done: ComparisonResults, options: LearningCurves) -> Table:
    """What the paper's text says of figure 3, for every arm."""
    results, differences = done.only, differences_to_reference(done.only)
    limit = threshold(results, options.failed_below)
    best, at = best_of_mean(results.curves[REFERENCE]["score"]) if REFERENCE in results.curves else (None, None)

    def first_past(results: Results, arm: str) -> Value:
        passed = None if best is None else steps_to_pass(results.curves[arm]["score"], best)
        return "never" if passed is None else str(passed)

    kind = "paired difference" if results.paired else "difference"
    corrected: arm_columns.Columns = {
        "p (Holm)": lambda _, arm: differences[arm].p_holm if arm in differences else None
    }
    columns: arm_columns.Columns = {
        **arm_columns.AVERAGE_SCORE,
        f"{kind} to {REFERENCE}": lambda _, arm: differences[arm].mean if arm in differences else None,
        **(corrected if any(one.p_holm is not None for one in differences.values()) else {}),
        "std over seeds": arm_columns.deviation_over_seeds(),
        f"step past {REFERENCE}'s best": first_past,
        **arm_columns.LAST_SCORE,
        **arm_columns.failures(limit),
        **arm_columns.LAST_KL_AND_LENGTH,
    }
    notes = [limit.note(f"Failed: last {last_steps(results)} steps average")]
    if best is not None:
        notes.append(f"{REFERENCE}'s best seed mean is {number(best)}, at step {at}; a mean over few seeds is noisy.")
    rows = tuple(arm_columns.rows(columns, results))
    heads = ("arm", *arm_columns.headings(columns, results))
    return Table(title=results.task, columns=heads, rows=rows, notes=tuple(notes))


def experiment(name: str) -> Experiment:
    """Learning curves as the command ``name`` makes them, in a folder of that name."""
    return Experiment(write=published("curves", table, draw), folder=name)
