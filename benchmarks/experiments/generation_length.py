"""Longer responses, sparser reward: the paper's figure 4, with every run drawn and failures counted."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.experiments.settings import GenerationLength
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import LAST, threshold
from benchmarks.reporting.paper_curves import paper_curves
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.experiment import Experiment, published
from benchmarks.runs.settings import ComparisonSettings, length_changes


def panels(_: ComparisonSettings, options: GenerationLength) -> Sequence[Panel]:
    """One panel per range."""
    return [Panel(name=f"{low}-{high}", changes=length_changes(low, high)) for low, high in options.lengths]


@figures.style()
def draw(done: ComparisonResults, _: GenerationLength) -> Figure:
    """Above, means with their bands; below, every run of every arm."""
    count = len(done.results)
    figure = figures.grid(2 * count, columns=count)
    panels = zip(figure.axes[:count], figure.axes[count:], done.results.items(), strict=True)
    for axes, single, (name, results) in panels:
        figures.behind(axes, results, paper_curves(done.settings.paper_curves, "length_sweep", name))
        figures.panel(axes, results, "score")
        axes.set_title(f"{name} tokens", loc="left")
        figures.runs(single, results, "score")
        single.set_title("every run", loc="left")
    figures.legend(figure, figure.axes[0], f"{results.task}: score ({figures.band_meaning(results)})")
    return figure


def table(done: ComparisonResults, options: GenerationLength) -> Table:
    """A row for every range and arm."""
    rows, notes = [], []
    for name, results in done.results.items():
        limit = threshold(results, options.failed_below)
        notes.append(limit.note(f"{name}: failed"))
        columns = {
            **arm_columns.AVERAGE_SCORE,
            **arm_columns.LAST_SCORE,
            "std over seeds, last {last}": arm_columns.deviation_over_seeds(LAST),
            **arm_columns.failures(limit),
            **arm_columns.LAST_KL_AND_LENGTH,
        }
        rows += [(name, *row) for row in arm_columns.rows(columns, results)]
    heads = ("tokens", "arm", *arm_columns.headings(columns, *done.results.values()))
    return Table(title="score by response length", columns=heads, rows=tuple(rows), notes=tuple(notes))


EXPERIMENT = Experiment(write=published("lengths", table, draw), folder="generation_length", panels=panels)
