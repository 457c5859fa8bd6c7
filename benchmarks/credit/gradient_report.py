"""Report the quality of gradients as a table and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.credit.settings import GradientSettings
from benchmarks.reporting import figures
from benchmarks.reporting.statistics import Summary
from benchmarks.reporting.tables import Table, Value

DRAWN = ("cosine to reference", "cosine of expectations", "relative variance")
COLUMNS = (
    *("method", "sparse steps", "explained variance", "… over position", "credited tokens"),
    *("cosine to sparse", *DRAWN),
)


def table(rows: Sequence[tuple[Value, ...]], ceilings: Sequence[float], settings: GradientSettings) -> Table:
    """The rows, and how to read them."""
    size = settings.prompts * settings.responses_per_prompt
    ceiling = ", ".join(f"{value:.3f}" for value in ceilings)
    return Table(
        title=f"gradients on {settings.task}: {settings.repetitions} rollouts of {size} responses",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=(
            "All methods get the same rollouts of the same prompts. Gradients are of the policy loss at ratio 1, with "
            "advantages whitened per rollout. Explained variance is that of a critic trained on sparse credit.",
            f"Reference: mean gradient of sparse at lam = 1 over {settings.reference_repetitions} further rollouts. "
            f"Its own noise limits the cosine of even an exact gradient to {ceiling} (one number per policy).",
            "Cosine to sparse, to the reference: mean over single rollouts [95 % bootstrap interval]. Cosine of "
            "expectations: noise removed, so 1 means no bias; chance may put it above 1 [95 % jackknife interval].",
            "Relative variance: trace of the covariance over the squared norm of the expected gradient, which is the "
            "number of rollouts whose mean has as much signal as noise [95 % jackknife interval; inf: noise may hide "
            "the signal].",
            f"Methods that learn had observed {settings.warm} rollouts of the policy.",
        ),
    )


@figures.style()
def draw(made: Table) -> Figure:
    """A dot and its interval for every arm: a panel per quantity, a row of panels per policy."""
    policies = list(dict.fromkeys(row[1] for row in made.rows))
    figure = figures.grid(len(DRAWN) * len(policies), columns=len(DRAWN))
    panels = [(steps, quantity) for steps in policies for quantity in DRAWN]
    for axes, (steps, quantity) in zip(figure.axes, panels, strict=True):
        _dots(axes, {str(row[0]): row[COLUMNS.index(quantity)] for row in made.rows if row[1] == steps})
        axes.set_title(f"{quantity}, after {steps} sparse steps", loc="left")
        axes.tick_params(axis="y", labelleft=quantity == DRAWN[0])
    return figure


def _dots(axes: Axes, values: Mapping[str, Value]) -> None:
    """Infinite values run off the right edge."""
    shown = [value for value in values.values() if isinstance(value, Summary)]
    edges = [edge for value in shown for edge in (value.low, value.mean, value.high)]
    right = 1.05 * max([edge for edge in edges if np.isfinite(edge)], default=1.0)
    for place, (arm, (colour, dash)) in enumerate(figures.line_styles(list(values)).items()):
        value: Any = values[arm]
        axes.plot([value.low, min(value.high, right)], [place, place], color=colour, linestyle=dash)
        axes.plot([value.mean], [place], "o", color=colour, markersize=4)
    if np.isinf(edges).any():
        axes.set_xlim(right=right)
    if not np.isfinite(edges).any():
        axes.text(0.5, 0.5, "undefined: too few rollouts", transform=axes.transAxes, ha="center")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(range(len(values)), labels=list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
