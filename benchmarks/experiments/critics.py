"""The same arms and seeds under every critic: value loss, and what the critic knows beyond a token's place."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure

from benchmarks.experiments.settings import Critics
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import LAST
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.experiment import Experiment, published
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import Task
from models.policy.critic_names import CriticKind

OVER_POSITION = "explained_variance_over_position"
COLUMNS: arm_columns.Columns = {
    "value loss": arm_columns.average("value_loss"),
    f"normalised, last {LAST}": arm_columns.average("value_loss_normalised", LAST),
    f"explained, last {LAST}": arm_columns.average("explained_variance", LAST),
    "over position": arm_columns.average(OVER_POSITION),
    f"over position, last {LAST}": arm_columns.average(OVER_POSITION, LAST),
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
        "that a mean per position does not have. Above 0.5 and below 0, the critic is worse than such a mean.",
        f"Averages over all steps, or the last {LAST}; {figures.band_meaning(next(iter(done.results.values())))}.",
    )
    return Table(title="critics", columns=("critic", "arm", *COLUMNS), rows=rows, notes=notes)


EXPERIMENT = Experiment(write=published("critics", table, draw), folder="critics", panels=panels)
