"""Is "sparse diverges when responses are long" sparsity, or the published stack's sampling mistakes?

The same arms and seeds under our sampler and under each mistake of the published stack (benchmarks.runs.samplers), at
short and at long responses: failed runs, runs with a negative KL, scores.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.experiments.settings import SamplingMismatch
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import last_steps, negative_kl, threshold
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.experiment import Experiment, published
from benchmarks.runs.settings import ComparisonSettings, length_changes


def panels(_: ComparisonSettings, options: SamplingMismatch) -> Sequence[Panel]:
    """A panel for every length and sampler."""
    return [
        Panel(name=f"{low}-{high}-{sampler}", changes=length_changes(low, high), sampler=sampler)
        for low, high in options.lengths
        for sampler in options.samplers
    ]


@figures.style()
def draw(done: ComparisonResults, _: SamplingMismatch) -> Figure:
    """Every run's score above and KL below, a column for every length and sampler."""
    columns = len(done.results)
    figure = figures.grid(2 * columns, columns=columns, width=2.3)
    for metric, row in (("score", figure.axes[:columns]), ("kl", figure.axes[columns:])):
        for axes, (name, results) in zip(row, done.results.items(), strict=True):
            figures.runs(axes, results, metric)
            axes.set_title(f"{name}: {metric}", loc="left")
            if metric == "kl":
                axes.axhline(0, color="0.6", linewidth=0.6)
    figures.legend(figure, figure.axes[0], f"{results.task}: every run (seeds: {len(results.seeds)})")
    return figure


def table(done: ComparisonResults, options: SamplingMismatch) -> Table:
    """A row for every length, sampler and arm."""
    rows, notes = [], []
    for tokens in (f"{low}-{high}" for low, high in options.lengths):
        limit = threshold(done.results[f"{tokens}-matched"], options.failed_below)
        notes.append(limit.note(f"{tokens} tokens: failed"))
        columns = {
            **arm_columns.AVERAGE_SCORE,
            **arm_columns.DIFFERENCE,
            **arm_columns.LAST_SCORE,
            **arm_columns.failures(limit),
            "negative KL": arm_columns.runs_of_all(negative_kl),
            **arm_columns.LAST_KL_AND_LENGTH,
        }
        for sampler in options.samplers:
            rows += [(tokens, sampler, *row) for row in arm_columns.rows(columns, done.results[f"{tokens}-{sampler}"])]
    last = last_steps(*done.results.values())
    notes.append(f"Negative KL: runs whose last {last} steps average below 0, which no KL between two policies is.")
    heads = ("tokens", "sampler", "arm", *arm_columns.headings(columns, *done.results.values()))
    return Table(title="the published stack's sampling", columns=heads, rows=tuple(rows), notes=tuple(notes))


EXPERIMENT = Experiment(write=published("mismatch", table, draw), folder="sampling_mismatch", panels=panels)
