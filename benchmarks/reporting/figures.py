"""Curves over steps and token heat maps as PNG and PDF; one colour per method, wherever it appears."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.reporting.comparison_report import QUANTITIES
from benchmarks.reporting.curve_readings import blocks
from benchmarks.reporting.statistics import FEWEST_SEEDS, Array, Results, band
from redistributors import REDISTRIBUTORS
from rlhf_core.pages.document import visible
from rlhf_core.pages.heat_map import CreditMap, coloured

# Okabe and Ito's palette, distinguishable with every common colour blindness.
COLOURS = {"sparse": "#000000", "uniform": "#E69F00", "abc": "#0072B2", "abc-d": "#009E73", "abc-d2": "#CC79A7"}
# Then Tol's muted ones, for pictures of many methods.
SPARE_COLOURS = (
    *("#D55E00", "#56B4E9", "#7F6000", "#999999", "#882255"),
    *("#332288", "#DDCC77", "#44AA99", "#AA4499", "#117733"),
)
DASHES = ("-", "--", ":", "-.")
FRONTIER = "score against KL"
TITLES = {quantity.metric: quantity.title for quantity in QUANTITIES} | {
    "score": "score",
    "length": "response length (tokens)",
    "kl": "KL to the reference (nats per response)",
    "value_loss": "value loss (raw)",
    "gold_score": "true score",
}
FIGURES = {
    "reward": ("score", "length"),
    "kl": ("kl", FRONTIER),
    "value_loss": ("value_loss", "value_loss_normalised"),
    "explained_variance": ("explained_variance", "explained_variance_over_position"),
}
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}
style = partial(mpl.rc_context, STYLE)
"""Fonts and lines of a paper, for the duration of a ``with``, or of a function that it decorates."""
BLOCK = 5
PANEL = (3.3, 2.3)
STRIP_WIDTH = 118
"""Characters of 6.5 points, gaps included, that fit beside the labels of two panels."""


def line_styles(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, dash) of every arm: the method decides the colour, its variants ("sparse-lam1") differ by dash."""
    methods = {arm: _method(arm) for arm in arms}
    others = sorted({method for method in methods.values() if method not in COLOURS})
    colours = COLOURS | {method: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, method in enumerate(others)}
    rounds = {method: i // len(SPARE_COLOURS) for i, method in enumerate(others)}  # a colour's second method is dashed
    seen: dict[str, int] = {}
    styles = {}
    for arm, method in methods.items():
        # The plain method is solid, whatever the order; variants take the other dashes in turn.
        rank = 0 if arm == method else seen.setdefault(method, 0) + 1
        seen[method] = max(seen.get(method, 0), rank)
        styles[arm] = (colours[method], DASHES[(rank + rounds.get(method, 0)) % len(DASHES)])
    return styles


def _method(arm: str) -> str:
    """The longest known method an arm's label starts with, or the label itself."""
    known = (name for name in REDISTRIBUTORS if arm == name or arm.startswith(f"{name}-"))
    return max(known, key=len, default=arm)


def panel(
    axes: Axes, results: Results, metric: str, *, edges: Callable[[Array], tuple[Array, Array, Array, str]] = band
) -> None:
    """One metric over steps: mean over seeds and its band, a line per arm that has it."""
    for arm, (colour, dash) in line_styles(results.arms).items():
        if metric not in results.curves[arm]:
            continue
        mean, low, high, _ = edges(results.curves[arm][metric])
        steps = np.arange(1, len(mean) + 1)
        axes.fill_between(steps, low, high, color=colour, alpha=min(0.13, 0.7 / len(results.arms)), linewidth=0)
        axes.plot(steps, mean, color=colour, linestyle=dash, label=arm)
    axes.set_title(TITLES.get(metric, metric), loc="left")
    step_axis(axes)
    if metric.startswith("explained_variance"):
        axes.axhline(0, color="0.6", linewidth=0.6)
        # A critic that has learnt nothing yet can be arbitrarily bad; the part worth reading is around [0, 1].
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -1.0), top=1.0)
    if metric in ("value_loss", "value_loss_normalised"):
        means = [results.curves[arm][metric].mean(0) for arm in results.arms if metric in results.curves[arm]]
        _log_scale(axes, [mean[np.isfinite(mean) & (mean > 0)] for mean in means])


def _log_scale(axes: Axes, lines: Sequence[Array]) -> None:
    """A log axis around what the lines reach; a linear one where they are 0 or undefined throughout."""
    shown = np.concatenate([np.empty(0), *lines])
    if not len(shown):
        return
    # A symmetric interval may reach 0, which no log axis can show: the lines decide what is shown.
    axes.set_ylim(0.5 * shown.min(), 2 * shown.max())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def standard_deviations(curve: Array) -> tuple[Array, Array, Array, str]:
    """Mean over seeds ± one standard deviation (ddof 0), as in the paper's figures."""
    mean, spread = curve.mean(0), curve.std(0)
    return mean, mean - spread, mean + spread, "standard deviation"


def behind(axes: Axes, results: Results, theirs: Mapping[str, Array]) -> None:
    """The paper's own means over runs, of the arms that ran here: thin and light behind ours, in the same colours."""
    for arm, (colour, dash) in line_styles([arm for arm in results.arms if arm in theirs]).items():
        mean = theirs[arm].mean(0)
        axes.plot(np.arange(1, len(mean) + 1), mean, color=colour, linestyle=dash, linewidth=0.7, alpha=0.45, zorder=1)


def legend(figure: Figure, axes: Axes, title: str) -> None:
    """One legend above all panels, from the lines of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    widest = 0.5 + 0.06 * max(map(len, labels), default=0)  # inches, line and gap included
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=max(1, min(len(labels), int(figure.get_figwidth() / max(widest, 1.0)))),
        frameon=False,
        title=title,
        title_fontsize=7.5,
        alignment="left",
        columnspacing=1.2,
        handlelength=1.8,
    )


def runs(axes: Axes, results: Results, metric: str) -> None:
    """Every run by itself, thin, in its arm's colour."""
    for arm, (colour, dash) in line_styles(results.arms).items():
        for index, curve in enumerate(results.curves[arm][metric]):
            label = arm if index == 0 else None
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, linestyle=dash, linewidth=0.6, label=label)
    step_axis(axes)


def step_axis(axes: Axes) -> None:
    """Whole steps below."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def value_axis(axes: Axes, label: str) -> None:
    """A quantity below, with few enough numbers that long ones do not touch."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))


def grid(panels: int, *, columns: int | None = None, width: float = PANEL[0]) -> Figure:
    """An empty figure of so many panels; at most two side by side unless ``columns`` says otherwise."""
    across = columns or min(panels, 2 if panels % 2 == 0 else 3)
    down = -(-panels // across)
    figure = Figure(figsize=(width * across, PANEL[1] * down + 0.35))
    figure.subplots(down, across, squeeze=False)
    for unused in figure.axes[panels:]:
        unused.remove()
    return figure


def frontier(axes: Axes, results: Results) -> None:
    """Score against KL: each point is a mean over seeds and ``BLOCK`` steps, the last one marked."""
    for arm in results.arms:
        kl, score = (blocks(results.curves[arm][metric].mean(0)[None], BLOCK)[0] for metric in ("kl", "score"))
        path(axes, kl, score, results, arm)
    axes.set_title(f"score against KL (means over seeds and {BLOCK} steps)", loc="left")
    value_axis(axes, "KL (nats per response)")


def path(axes: Axes, x: Array, y: Array, results: Results, arm: str) -> None:
    """An arm's line with a dot at its end."""
    colour, dash = line_styles(results.arms)[arm]
    axes.plot(x, y, color=colour, linestyle=dash, label=arm)
    axes.plot(x[-1:], y[-1:], "o", color=colour, markersize=4)


def one_scale(panels: Sequence[Axes]) -> None:
    """The same values up and down in all of them."""
    lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(lows), max(highs))


def band_meaning(results: Results) -> str:
    """What line and band are."""
    few, many = results.fewest, max(results.counts.values())
    interval = "95 % t-interval" + (f" (range below {FEWEST_SEEDS} seeds)" if few < FEWEST_SEEDS else "")
    return f"line: mean, band: {'range' if many < FEWEST_SEEDS else interval}; seeds: {results.how_many}"


@style()
def curves(results: Results, metrics: Sequence[str]) -> Figure:
    """Panels side by side under one legend."""
    figure = grid(len(metrics), columns=len(metrics))
    for axes, metric in zip(figure.axes, metrics, strict=True):
        frontier(axes, results) if metric == FRONTIER else panel(axes, results, metric)
    legend(figure, figure.axes[0], f"{results.task} ({band_meaning(results)})")
    return figure


@style()
def summary(results: Results, example: CreditMap) -> Figure:
    """The job on one page: score, comparable value loss, and who gets the credit in one response."""
    rows = len(example.rows) + len(example.reference_rows)
    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] + 0.75 + 0.2 * rows))
    places = figure.add_gridspec(2, 2, height_ratios=(PANEL[1], 0.35 + 0.2 * rows))
    left, right = figure.add_subplot(places[0, 0]), figure.add_subplot(places[0, 1])
    panel(left, results, "score")
    panel(right, results, "value_loss_normalised")
    strip(figure.add_subplot(places[1, :]), example)
    legend(figure, left, f"{results.task} ({band_meaning(results)})")
    return figure


def strip(axes: Axes, example: CreditMap) -> None:
    """One response, a row per method: the deeper a token's colour, the larger its score (blue above 0, red below).

    Of a response too long for the page only the end is shown, where sparse puts its score.
    """
    widths = [len(_shown(token)) + 1.6 for token in example.tokens]
    first = next(i for i in range(len(widths)) if sum(widths[i:]) <= STRIP_WIDTH or i == len(widths) - 1)
    edges = np.concatenate([[0.0], np.cumsum(widths[first:])])
    tones = coloured(example)
    for line, row in enumerate(tones.values()):
        for left, right, token, tone in zip(edges, edges[1:], example.tokens[first:], row[first:], strict=False):
            box = Rectangle((left, line), right - left, 0.9, facecolor=tone.background, edgecolor="white")
            axes.add_patch(box)
            middle = ((left + right) / 2, line + 0.47)
            axes.text(*middle, _shown(token), ha="center", va="center", color=tone.text, fontsize=6.5)
    axes.set_xlim(0, max(edges[-1], 0.6 * STRIP_WIDTH))
    axes.set_ylim(len(tones), 0)
    axes.set_yticks(np.arange(len(tones)) + 0.45, labels=list(tones))
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    part = f", its last {len(edges) - 1} tokens" if first else ""
    axes.set_title(f"credit on one response{part}; score {example.score:+z.2f}; depth ∝ √|token score|", loc="left")


def _shown(token: str) -> str:
    # A dollar sign would start matplotlib's own formulas.
    return (visible(token).strip() or "·").replace("$", r"\$")


@style()
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """``name.png`` at 200 dpi and ``name.pdf`` with real fonts."""
    files = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for file in files:
        figure.savefig(file)
    return files


def write(results: Results, example: CreditMap, folder: Path) -> list[Path]:
    """Every figure of the experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = save(summary(results, example), folder, "summary")
    for name, metrics in FIGURES.items():
        paths += save(curves(results, metrics), folder, name)
    return paths
