"""The same arms and seeds under every critic: value loss, and what the critic knows beyond a token's place."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.experiments.settings import Critics
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import LAST, REFERENCE, last_steps
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Array, differences_to
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.experiment import Experiment
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import Task
from models.policy.critic_names import CriticKind

OVER_POSITION, WITHIN_POSITION = "explained_variance_over_position", "explained_variance_within_position"
COLUMNS: arm_columns.Columns = {
    "value loss": arm_columns.average("value_loss"),
    "normalised": arm_columns.average("value_loss_normalised"),
    "normalised, last {last}": arm_columns.average("value_loss_normalised", LAST),
    "explained, last {last}": arm_columns.average("explained_variance", LAST),
    "over position": arm_columns.average(OVER_POSITION),
    "over position, last {last}": arm_columns.average(OVER_POSITION, LAST),
    "within position, last {last}": arm_columns.average(WITHIN_POSITION, LAST),
    **arm_columns.LAST_SCORE,
    **arm_columns.LAST_KL_AND_LENGTH,
}


def with_critic(task: Task, critic: CriticKind) -> Task:
    """The same task, its policy loaded with another kind of critic."""
    made: Task = replace(task, loading=replace(task.loading, critic=critic))  # type: ignore[type-var]  # a dataclass
    return made


def panels(settings: ComparisonSettings, options: Critics) -> Sequence[Panel]:
    """A panel for every critic.

    Raises:
        ValueError: the settings name a critic themselves.
    """
    loading = settings.loading
    if loading.critic != "shared":
        raise ValueError(f"--loading.critic {loading.critic} is one critic for all; name it in --critics")
    return [Panel(name=kind, task=partial(with_critic, critic=kind)) for kind in options.critics]


@figures.style()
def draw(done: ComparisonResults, _: Critics) -> Figure:
    """Explained variance over position by step, a panel for every critic, all of one height."""
    figure = figures.grid(len(done.results), columns=len(done.results))
    for axes, (name, results) in zip(figure.axes, done.results.items(), strict=True):
        figures.panel(axes, results, OVER_POSITION)
        axes.set_title(f"critic {name!r}", loc="left")
    figures.one_scale(figure.axes)
    results = next(iter(done.results.values()))
    title = f"{results.task}: explained variance over position ({figures.band_meaning(results)})"
    figures.legend(figure, figure.axes[0], title)
    return figure


def table(done: ComparisonResults, _: Critics) -> Table:
    """A row for every critic and arm."""
    rows = tuple((name, *row) for name, results in done.results.items() for row in arm_columns.rows(COLUMNS, results))
    notes = (
        "Normalised: value loss over the variance of the returns within a position; over position: explained variance "
        "that a mean per position does not have. Above 0.5 and below 0, the critic is worse than such a mean. Within "
        "position: the same once the critic's mean error at each position is taken off.",
        f"Averages over all steps unless stated; {figures.band_meaning(next(iter(done.results.values())))}.",
    )
    columns = ("critic", "arm", *arm_columns.headings(COLUMNS, *done.results.values()))
    return Table(title="critics", columns=columns, rows=rows, notes=notes)


def comparisons(done: ComparisonResults, _: Critics) -> Table:
    """Explained variance over position at the end: of every critic and arm against 0; of every critic against the
    first; of every arm against sparse. Paired by seed, Holm's correction within each of the three."""
    found = {
        (name, arm): results.per_seed(arm, OVER_POSITION, LAST)
        for name, results in done.results.items()
        for arm in results.arms
    }
    first = next(iter(done.results))
    against: dict[str, dict[tuple[str, str], Array]] = {
        "0, a mean per position": found,
        f"critic {first!r}": {
            (name, arm): values - found[first, arm] for (name, arm), values in found.items() if name != first
        },
        REFERENCE: {
            (name, arm): values - found[name, REFERENCE]
            for (name, arm), values in found.items()
            if arm != REFERENCE and (name, REFERENCE) in found
        },
    }
    rows = []
    for what, cells in against.items():
        tested = differences_to(np.zeros(1), {f"{name}/{arm}": values for (name, arm), values in cells.items()})
        rows += [(what, *cell, one, one.p, one.p_holm) for cell, one in zip(cells, tested.values(), strict=True)]
    notes = (
        f"Explained variance over position, mean of the last {last_steps(*done.results.values())} steps; brackets: "
        "95 % t-interval over seeds; p: paired t-test, two-sided.",
        "Holm: corrected for how many comparisons have the same first column.",
    )
    columns = ("against", "critic", "arm", "difference", "p", "p, Holm")
    return Table(title="comparisons", columns=columns, rows=tuple(rows), notes=notes)


def write(done: ComparisonResults, options: Critics, out: Path, console: Console) -> None:
    """Both tables and the figure."""
    publish(comparisons(done, options), {}, out, console, name="comparisons")
    publish(table(done, options), {"critics": draw(done, options)}, out, console)


EXPERIMENT = Experiment(write=write, folder="critics", panels=panels)
