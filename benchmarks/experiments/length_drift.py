"""The length canary: every response gets the same score, so no length is better. Which methods change the length
anyway?

At a constant score the true gradient is zero. Credit that lands before the last token makes reward-to-go depend on
how long the response became, and PPO follows it. Sparse at lam 1 with a critic that stays at 0 has no gradient at all;
a critic that learns moves it too: at lam below 1 through the advantages, and at any lam through the weights that policy
and value head share. Centring takes the constant away before it is redistributed. The KL penalty is on, as always: it
pulls length back to the reference's and never away from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmarks.experiments.settings import LengthDrift
from benchmarks.reporting import arm_columns, figures
from benchmarks.reporting.curve_readings import LAST
from benchmarks.reporting.statistics import Array, Summary, nan_mean, summarise
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.constant_score import ConstantTask
from benchmarks.runs.experiment import Experiment, published
from benchmarks.runs.settings import ComparisonSettings
from rlhf_core.names import counted


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One panel: what every response scores, λ, and what else is changed."""

    value: float
    lam: float
    kind: str = "plain"

    @property
    def name(self) -> str:
        """Folder."""
        return f"{self.value:+g}-lam{self.lam:g}{'' if self.kind == 'plain' else '-' + self.kind.replace('_', '-')}"


WORDS = {"plain": "critic learns", "no_critic": "critic stays 0", "centred": "centred"}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "no_critic": {"value_coef": 0.0},
    "centred": {"score.centring": "running_mean"},
}


def settings_of(options: LengthDrift) -> list[Setting]:
    """Every panel's setting, in the order they are shown."""
    settings = [Setting(value=value, lam=lam) for lam in options.lams for value in options.values]
    values = {"no_critic": options.values, "centred": options.values[:1]}
    return settings + [
        Setting(value=value, lam=options.lams[0], kind=kind) for kind in options.extras for value in values[kind]
    ]


def panels(_: ComparisonSettings, options: LengthDrift) -> Sequence[Panel]:
    """A panel for every setting."""
    low, high = options.lengths
    return [
        Panel(
            name=setting.name,
            changes={"lam": setting.lam, "min_length": low, "max_length": [high, high], **CHANGES[setting.kind]},
            task=partial(ConstantTask, value=setting.value),
        )
        for setting in settings_of(options)
    ]


@figures.style()
def draw(done: ComparisonResults, options: LengthDrift) -> Figure:
    """Length over steps, a panel for every setting, all of one height."""
    figure = figures.grid(len(done.results), columns=min(2, len(done.results)))
    for axes, setting in zip(figure.axes, settings_of(options), strict=True):
        results = done.results[setting.name]
        figures.panel(axes, results, "length")
        axes.set_title(f"score {setting.value:+g}, lam {setting.lam:g}, {WORDS[setting.kind]}", loc="left")
    figures.one_scale(figure.axes)
    title = f"{results.task}: response length (tokens) at a constant score ({figures.band_meaning(results)})"
    figures.legend(figure, figure.axes[0], title)
    return figure


def change(curve: Array) -> Array:
    """Mean of the last ``LAST`` steps minus the first step, which precedes any update, for each seed."""
    return nan_mean(curve[:, 1:][:, -LAST:]) - curve[:, 0]


def drifts(measured: Summary) -> str:
    """Whether the interval excludes 0, and on which side."""
    side = "longer" if measured.low > 0 else "shorter" if measured.high < 0 else "no"
    return side if measured.kind == "95 % interval" else f"{side} (range)"


COLUMNS: arm_columns.Columns = {
    "length, step 1": lambda results, arm: summarise(results.curves[arm]["length"][:, 0]),
    "change": lambda results, arm: summarise(change(results.curves[arm]["length"])),
    "drifts": lambda results, arm: drifts(summarise(change(results.curves[arm]["length"]))),
    **arm_columns.LAST_KL,
}


def table(done: ComparisonResults, options: LengthDrift) -> Table:
    """A row for every setting and arm."""
    rows = tuple(
        (f"{setting.value:+g}", float(setting.lam), WORDS[setting.kind], *row)
        for setting in settings_of(options)
        for row in arm_columns.rows(COLUMNS, done.results[setting.name])
    )
    last = min(LAST, *(results.steps - 1 for results in done.results.values()))
    notes = (
        f"Change: mean length of the last {counted(last, 'step')} minus that of step 1, before any update; "
        "95 % t-interval over seeds (range below 4). It drifts where that leaves 0 out, which one row in twenty "
        "does by chance.",
        f"Responses of {options.lengths[0]} to {options.lengths[1]} tokens; a constant score has no gradient.",
    )
    columns = ("score", "lam", "panel", "arm", *arm_columns.headings(COLUMNS, *done.results.values()))
    return Table(title="length at a constant score", columns=columns, rows=rows, notes=notes)


EXPERIMENT = Experiment(write=published("drift", table, draw), folder="length_drift", panels=panels)
