"""Line charts as inline SVG: no script, no library, and every number in a table beside the picture.

Text and lines take their colours from CSS variables of the page, so one picture serves light and dark.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlhf_core.names import counted
from rlhf_core.pages.document import escaped

WIDTH, HEIGHT = 360, 202
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 42
MOST_POINTS = 300
"""Points of a drawn line; a longer curve is averaged over bins of steps, and the caption says so."""
MOST_DOTS = 60
"""Points that each get a dot with its value on hover."""
MOST_ROWS = 40
"""Rows of the table of numbers."""
CROWD = 2
"""Bands beyond so many are drawn paler."""
COLOURS = 7
"""Curves that get a colour and dash of their own; further ones begin again."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: ``values`` at ``steps``, in ascending order. NaN or infinity is a gap. ``low`` and ``high`` are the
    edges of a band around it; both are empty if there is none.

    Raises:
        ValueError: lengths differ.
    """

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("steps", "values", "low", "high")}
        due = {0, len(self.steps)}
        if len(self.values) != len(self.steps) or len(self.low) != len(self.high) or len(self.low) not in due:
            raise ValueError(f"Curve {self.label!r}: lengths differ: {lengths}")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves on one pair of axes, with a ``title`` that holds the unit and a ``sentence`` on how to read them.

    ``guide``: a dashed line at a value, such as a target, and what it is called.
    """

    title: str
    sentence: str
    curves: tuple[Curve, ...]
    guide: tuple[float, str] | None = None


CSS = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.6rem 2rem }
.chart { margin: 0; min-width: 0 } .chart h3 { margin: 0 0 .15rem; font-size: 1rem }
.chart p { margin: 0 0 .4rem; color: var(--muted); font-size: .875rem }
.chart svg { display: block; width: 100%; height: auto; max-width: 30rem; overflow: visible }
.chart text { font: 11px system-ui, sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums }
.chart .name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
.chart .grid { stroke: var(--line); stroke-width: 1 }
.chart .guide { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3 }
.chart .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
.chart .band { stroke: none; fill-opacity: .16 }
.chart .crowded .band { fill-opacity: .07 } .chart .dot { stroke: none } .chart .aim { fill: transparent }
.chart g:hover > .dot { stroke: var(--ink); stroke-width: 2 }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: 0 0 .3rem; padding: 0; list-style: none;
          font-size: .8125rem }
.legend li { display: flex; align-items: center; gap: .4rem; min-width: 0; overflow-wrap: anywhere }
.legend svg { flex: none; width: 26px; height: 10px }
.numbers { margin-top: .3rem; font-size: .8125rem } .numbers summary { cursor: pointer; color: var(--muted) }
.numbers div { overflow: auto; max-height: 18rem } .numbers table { border-collapse: collapse }
.numbers th, .numbers td { padding: .1rem .6rem .1rem 0; text-align: right; white-space: nowrap;
                           font-variant-numeric: tabular-nums }
@media (max-width: 40rem) {
.numbers div { overflow: visible; max-height: none }
.many thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; width: 1px }
.many table, .many tbody, .many tr { display: block } .many tr { padding: .2rem 0; border-top: 1px solid var(--line) }
.many tbody th { display: block; text-align: left; padding: 0 } .many tbody th::before { content: "step " }
.many td { display: flex; justify-content: space-between; gap: 1rem; padding: 0 } .many td:empty { display: none }
.many td::before { content: attr(data-is); text-align: left; white-space: normal; min-width: 0 }
}
.k0 { --k: #0067a5 } .k1 { --k: #c44e00 } .k2 { --k: #007a58 } .k3 { --k: #9a3d7c } .k4 { --k: #8a6500 }
.k5 { --k: #5b4fc4 } .k6 { --k: #555 }
.k1 .line { stroke-dasharray: 7 3 } .k2 .line { stroke-dasharray: 2 3 } .k3 .line { stroke-dasharray: 9 3 2 3 }
.k4 .line { stroke-dasharray: 4 4 } .k5 .line { stroke-dasharray: 12 4 } .k6 .line { stroke-dasharray: 1 4 }
.line { stroke: var(--k) } .band, .dot { fill: var(--k) }
@media (prefers-color-scheme: dark) {
.k0 { --k: #5ab4f0 } .k1 { --k: #ff9055 } .k2 { --k: #3fc79a } .k3 { --k: #e59ac8 } .k4 { --k: #e0b840 }
.k5 { --k: #a99cff } .k6 { --k: #bbb }
}
"""


def figure(chart: Chart) -> str:
    """The chart as an HTML ``figure``: title, sentence, legend where there are several curves, picture and numbers. One
    without any defined value says so in place of a picture."""
    shown = [_thinned(curve) for curve in chart.curves]
    if not any(math.isfinite(value) for curve in shown for value in curve.values):
        picture = "<p>No step has defined this figure yet.</p>"
    else:
        picture = f"{_legend(shown)}{_svg(chart, shown)}{_caption(chart, shown)}{_numbers(chart)}"
    return f'<figure class="chart"><h3>{escaped(chart.title)}</h3><p>{escaped(chart.sentence)}</p>{picture}</figure>\n'


def number(value: float) -> str:
    """Four significant digits, or an en dash for what is undefined; never "−0"."""
    return signed(f"{value:z.4g}") if math.isfinite(value) else "–"


def signed(text: str) -> str:
    """A written number with a minus sign in place of a hyphen, and without the zeros of an exponent."""
    return text.replace("-", "−").replace("e−0", "e−").replace("e+0", "e").replace("e+", "e")


def ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Round numbers, at most ``most`` + 1, that cover [low, high] to within one of their spaces."""
    space = (high - low) / most
    power = 10.0 ** math.floor(math.log10(space))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= space * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(place * step, 12) for place in range(first, last + 1))


def _thinned(curve: Curve) -> Curve:
    """At most ``MOST_POINTS`` points: means over bins of steps, banded by the smallest and largest value of a bin."""
    size = math.ceil(len(curve.steps) / MOST_POINTS)
    if size <= 1:
        return curve
    bins = [range(start, min(start + size, len(curve.steps))) for start in range(0, len(curve.steps), size)]
    low, high = curve.low or curve.values, curve.high or curve.values

    def of(values: Sequence[float], places: range) -> list[float]:
        return [values[place] for place in places if math.isfinite(values[place])] or [math.nan]

    return replace(
        curve,
        steps=tuple(curve.steps[places[len(places) // 2]] for places in bins),
        values=tuple(math.fsum(known) / len(known) for known in (of(curve.values, places) for places in bins)),
        low=tuple(min(of(low, places)) for places in bins),
        high=tuple(max(of(high, places)) for places in bins),
    )


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """Maps a step and a value to a place in the picture."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return LEFT + (step - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(chart: Chart, curves: Sequence[Curve]) -> _Axes:
    steps = [step for curve in curves for step in curve.steps]
    values = [value for curve in curves for value in (*curve.values, *curve.low, *curve.high) if math.isfinite(value)]
    values += [chart.guide[0]] if chart.guide else []
    low, high = _apart(min(values), max(values))
    margin = (high - low) * 0.04
    return _Axes(steps=_apart(min(steps), max(steps)), values=(low - margin, high + margin))


def _apart(low: float, high: float) -> tuple[float, float]:
    """A range of positive width, also around a single number."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    half = abs(high) / 2 or 0.5
    return low - half, high + half


def _svg(chart: Chart, curves: Sequence[Curve]) -> str:
    axes = _axes(chart, curves)
    parts = [*_frame(axes, curves)]
    for place, curve in enumerate(curves):
        parts.append(f'<g class="k{place % COLOURS}">{"".join(_drawn(axes, curve))}</g>')
    parts += _guide(axes, *chart.guide) if chart.guide else ()
    said = escaped(_said(chart))
    bands = sum(bool(curve.low) for curve in curves)
    crowded = ' class="crowded"' if bands > CROWD else ""  # bands over each other turn grey and hide the lines
    return f'<svg{crowded} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _frame(axes: _Axes, curves: Sequence[Curve]) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value in ticks(*axes.values):
        y = axes.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
    steps = sorted({step for curve in curves for step in curve.steps})
    marked = steps if len(steps) <= 2 else [step for step in ticks(*axes.steps) if float(step).is_integer()]
    for step in marked:
        x = axes.x(step)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        yield f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="{anchor}">{int(step)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle:.1f}" y="{bottom + 36}" text-anchor="middle">step</text>'  # clear of every tick


def _tick(value: float) -> str:
    """Powers of ten only where the number is very large or small."""
    return signed(f"{value:z.5g}")


def _guide(axes: _Axes, value: float, name: str) -> Iterator[str]:
    y = axes.y(value)
    above = y - 4 if y > TOP + 16 else y + 13
    yield f'<path class="guide" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    yield f'<text class="name" x="{LEFT + 4}" y="{above:.1f}">{escaped(name)}</text>'


def _drawn(axes: _Axes, curve: Curve) -> Iterator[str]:
    for part in _unbroken(curve):
        edges = [place for place in part if curve.low and math.isfinite(curve.low[place] + curve.high[place])]
        if edges:
            there = " ".join(f"{axes.x(curve.steps[i]):.1f},{axes.y(curve.high[i]):.1f}" for i in edges)
            back = " ".join(f"{axes.x(curve.steps[i]):.1f},{axes.y(curve.low[i]):.1f}" for i in reversed(edges))
            yield f'<polygon class="band" points="{there} {back}"/>'
        points = " ".join(f"{axes.x(curve.steps[i]):.1f},{axes.y(curve.values[i]):.1f}" for i in part)
        yield f'<polyline class="line" points="{points}"/>' if len(part) > 1 else ""
    known = [place for place, value in enumerate(curve.values) if math.isfinite(value)]
    alone = {part[0] for part in _unbroken(curve) if len(part) == 1}
    for place in known if len(known) <= MOST_DOTS else sorted(alone):
        yield _dot(axes, curve, place)


def _dot(axes: _Axes, curve: Curve, place: int) -> str:
    x, y = axes.x(curve.steps[place]), axes.y(curve.values[place])
    within = f", {number(curve.low[place])} to {number(curve.high[place])}" if curve.low else ""
    words = escaped(f"{curve.label}, step {curve.steps[place]}: {number(curve.values[place])}{within}")
    at = f'cx="{x:.1f}" cy="{y:.1f}"'
    return f'<g><title>{words}</title><circle class="aim" {at} r="8"/><circle class="dot" {at} r="2.4"/></g>'


def _unbroken(curve: Curve) -> list[list[int]]:
    """Places of consecutive values that are defined."""
    parts: list[list[int]] = [[]]
    for place, value in enumerate(curve.values):
        if math.isfinite(value):
            parts[-1].append(place)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _legend(curves: Sequence[Curve]) -> str:
    if len(curves) < 2:
        return ""
    line = '<svg viewBox="0 0 26 10" aria-hidden="true"><path class="line" d="M1 5H25"/></svg>'
    entries = [
        f'<li class="k{place % COLOURS}">{line}{escaped(curve.label)}</li>' for place, curve in enumerate(curves)
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _caption(chart: Chart, shown: Sequence[Curve]) -> str:
    """Notes on what the picture does not show."""
    said = []
    for whole, drawn in zip(chart.curves, shown, strict=True):
        missing = sum(not math.isfinite(value) for value in whole.values)
        if missing:
            said.append(f"{whole.label}: undefined at {missing} of {counted(len(whole.values), 'step')}")
        if drawn is not whole:
            size = math.ceil(len(whole.steps) / MOST_POINTS)
            said.append(
                f"{whole.label}: each point is a mean of {size} steps, the band reaches from the smallest to "
                "the largest"
            )
    return f"<p>{escaped('; '.join(said))}.</p>" if said else ""


def _numbers(chart: Chart) -> str:
    """A table of the curves' values: every few steps of a long one, and always the first and the last."""
    steps = sorted({step for curve in chart.curves for step in curve.steps})
    every = math.ceil(len(steps) / MOST_ROWS)
    shown = steps[::every] if steps[-1] in steps[::every] else [*steps[::every], steps[-1]]
    values = [dict(zip(curve.steps, _cells(curve), strict=True)) for curve in chart.curves]
    head = "".join(f'<th scope="col">{escaped(curve.label)}</th>' for curve in chart.curves)
    rows = "".join(
        f'<tr><th scope="row">{step}</th>'
        + "".join(
            f'<td data-is="{escaped(curve.label)}">{cells.get(step, "")}</td>'
            for curve, cells in zip(chart.curves, values, strict=True)
        )
        + "</tr>"
        for step in shown
    )
    which = "" if every == 1 else f", every {every} steps"
    many = " many" if len(chart.curves) > 1 else ""  # a phone shows those as lines below each other
    return (
        f'<details class="numbers{many}"><summary>Numbers{which}</summary><div tabindex="0"><table>'
        f'<thead><tr><th scope="col">step</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _cells(curve: Curve) -> list[str]:
    if not curve.low:
        return [number(value) for value in curve.values]
    edges = zip(curve.values, curve.low, curve.high, strict=True)
    return [f"{number(value)} [{number(low)}, {number(high)}]" for value, low, high in edges]


def _said(chart: Chart) -> str:
    """A description of the picture: where each curve begins and ends."""
    words = []
    for curve in chart.curves:
        known = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if math.isfinite(value)]
        if known:
            (first, begin), (last, end) = known[0], known[-1]
            words.append(f"{curve.label}: {number(begin)} at step {first}, {number(end)} at step {last}")
    return f"{chart.title}. {'; '.join(words)}."
