"""The table of an experiment, in the terminal and on disk, and one sentence on what it allows to be said."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.base.json_files import jsonable, write_json
from benchmarks.reporting.statistics import (
    FEWEST_SEEDS,
    Difference,
    Results,
    Summary,
    differences_to,
    iqm,
    smallest_p,
    summarise,
    variance_across_seeds,
)

LAST = 10
REFERENCE = "sparse"
TITLE_WIDTH, ARM_WIDTH, GAP = 26, 16, 3
"""Columns of a terminal: at least these for a quantity's name, at most these for an arm's name in one line, and what
parts two columns."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A row of the table: a metric averaged over all steps (``last`` None) or the last few, then over seeds."""

    key: str
    title: str
    metric: str
    last: int | None = None


AVERAGE_SCORE = Quantity(key="average_score", title="average score", metric="score")
QUANTITIES = (
    AVERAGE_SCORE,
    Quantity(key="final_score", title=f"final score (last {LAST} steps)", metric="score", last=LAST),
    Quantity(key="held_out_score", title="held-out score, at the end", metric="held_out_score"),
    Quantity(key="held_out_gold", title="held-out true score, at the end", metric="held_out_gold"),
    Quantity(key="credit_truth", title="rank correlation, credit with truth", metric="credit_truth"),
    Quantity(key="value_loss", title="value loss", metric="value_loss"),
    Quantity(key="value_loss_paper", title="value loss, the paper's mean", metric="value_loss_paper"),
    Quantity(
        key="value_loss_normalised", title="value loss / within-position variance", metric="value_loss_normalised"
    ),
    Quantity(key="explained_variance", title="explained variance", metric="explained_variance"),
    Quantity(
        key="explained_variance_over_position",
        title="explained variance over position",
        metric="explained_variance_over_position",
    ),
    Quantity(key="return_variance", title="variance of returns, batch", metric="return_variance"),
    Quantity(
        key="return_variance_within_position",
        title="… within positions",
        metric="return_variance_within_position",
    ),
    Quantity(key="kl", title=f"KL, nats a response (last {LAST})", metric="kl", last=LAST),
    Quantity(key="length", title=f"length, tokens (last {LAST})", metric="length", last=LAST),
)
Value = Summary | Difference | float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the table, and how it reads."""

    key: str
    title: str
    arm: str
    value: Value

    @property
    def text(self) -> str:
        """``mean [low, high]``, or what of it exists."""
        value = self.value
        if isinstance(value, float):
            return number(value)
        if value.low is None or value.high is None or math.isnan(value.low):
            return number(value.mean)
        return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything printed and written: cells by row and arm, notes under the table, and the verdict."""

    results: Results
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    verdict: str


def number(value: float) -> str:
    """Three significant digits, at most four decimals from 0.001 on; "–" where undefined."""
    if math.isnan(value):
        return "–"
    rounded = float(f"{value:.3g}")  # first, or 0.9999 would be given a digit more than 1
    if rounded == 0 or 1e-3 <= abs(rounded) < 1e5:
        digits = 0 if rounded == 0 else max(0, 2 - math.floor(math.log10(abs(rounded))))
        return f"{value:.{min(digits, 4)}f}"
    return f"{value:.3g}"


def build(results: Results) -> Report:
    """Reduce the curves to the table, its notes and its verdict."""
    measured = [
        tuple(_cell(results, quantity, arm) for arm in results.arms)
        for quantity in QUANTITIES
        if any(quantity.metric in results.curves[arm] for arm in results.arms)
    ]
    rows = (measured[0], *_comparison(results), *measured[1:], *_across_seeds(results))
    return Report(results=results, rows=rows, notes=notes(results), verdict=verdict(results))


def _across_seeds(results: Results) -> list[tuple[Cell, ...]]:
    """Variance over seeds at each step, averaged over steps: of the mean return, where logged, and of the score."""
    titles = {"return_mean": "variance of a step's mean return across seeds", "score": "… of its score"}
    return [
        _row(
            results,
            f"{metric}_variance_across_seeds",
            title,
            lambda arm, metric=metric: variance_across_seeds(results.curves[arm][metric]),
        )
        for metric, title in titles.items()
        if all(metric in curves for curves in results.curves.values())
    ]


def _comparison(results: Results) -> list[tuple[Cell, ...]]:
    """Rows that stand beside the average score: its IQM, and where sparse ran, the difference to it."""
    name = AVERAGE_SCORE.title
    rows = [_row(results, "iqm", f"{name}, IQM of seeds", lambda arm: iqm(results.per_seed(arm, "score")))]
    differences = compare(results)
    if differences:
        rows += [
            _row(
                results,
                "difference",
                f"{name}, paired difference to {REFERENCE}",
                lambda arm: differences.get(arm, math.nan),
            ),
            _row(results, "p_holm", "p of it, Holm-corrected", lambda arm: _p(differences.get(arm))),
        ]
    return rows


def _row(results: Results, key: str, title: str, value: Callable[[str], Value]) -> tuple[Cell, ...]:
    return tuple(Cell(key=key, title=title, arm=arm, value=value(arm)) for arm in results.arms)


def _cell(results: Results, quantity: Quantity, arm: str) -> Cell:
    value: Summary | float = float("nan")
    if quantity.metric in results.curves[arm]:
        value = summarise(results.per_seed(arm, quantity.metric, quantity.last))
    return Cell(key=quantity.key, title=quantity.title, arm=arm, value=value)


def _p(difference: Difference | None) -> float:
    return float("nan") if difference is None or difference.p_holm is None else difference.p_holm


def compare(results: Results) -> dict[str, Difference]:
    """Average score of every arm against sparse, paired by seed; empty where sparse did not run."""
    if REFERENCE not in results.curves:
        return {}
    reference = results.per_seed(REFERENCE, AVERAGE_SCORE.metric)
    others = {arm: results.per_seed(arm, AVERAGE_SCORE.metric) for arm in results.arms if arm != REFERENCE}
    return differences_to(reference, others)


def notes(results: Results) -> tuple[str, ...]:
    """What the numbers under each other mean, and what they do not."""
    seeds = len(results.seeds)
    if seeds < FEWEST_SEEDS:
        brackets = f"Brackets: range over {seeds} seed(s); below {FEWEST_SEEDS} seeds there are no intervals."
    else:
        brackets = (
            f"Brackets: 95 % t-interval over {seeds} seeds; for the difference a percentile bootstrap over seeds, "
            "nominally 95 %, which covers less with few seeds (80 to 85 % at 4 or 5): read its p instead. "
            f"p: sign-flip test, two-sided, at least {smallest_p(seeds):.2g} before correction."
        )
    return (
        f"{results.task}, {_steps(results)} steps; averages run over all steps unless stated; – is undefined (equal "
        "credit has no ranks, sparse no difference to itself).",
        brackets,
        "Raw value loss and plain explained variance are not comparable between methods: spreading a score changes "
        "the targets themselves. The lines that divide by, or start from, the position are.",
    )


def _steps(results: Results) -> int:
    return int(results.curves[results.arms[0]]["score"].shape[1])


def verdict(results: Results) -> str:
    """One honest sentence: a best method only where its interval meets no other's, with lengths and KLs beside it."""
    arms = results.arms
    if len(arms) < 2:
        return "One arm ran; there is nothing to compare."
    scores = {arm: summarise(results.per_seed(arm, AVERAGE_SCORE.metric)) for arm in arms}
    if any(math.isnan(score.mean) for score in scores.values()):
        return "An arm has no defined average score; nothing is concluded."
    best = max(arms, key=lambda arm: scores[arm].mean)
    rivals = [arm for arm in arms if arm != best and scores[best].overlaps(scores[arm])]
    if any(score.kind == "range" for score in scores.values()):
        few = len(results.seeds) < FEWEST_SEEDS
        given = f"{len(results.seeds)} seed(s) give" if few else "seeds that all agree in an arm give it"
        said = (
            f"{given} points and ranges only, so no method is called better "
            f"({best} has the highest average score, {_shown(scores[best])})"
        )
    elif rivals:
        others = ", ".join(f"{arm} {_shown(scores[arm])}" for arm in rivals)
        said = f"No winner: the interval of {best}, {_shown(scores[best])}, overlaps that of {others}"
    else:
        said = f"{best} has the highest average score, {_shown(scores[best])}, and its interval overlaps no other's"
        difference = compare(results).get(best)
        said += f" (against {REFERENCE}: p {number(_p(difference))} after Holm's correction)" if difference else ""
    return f"{said}; {_ranged(results, 'length', 'tokens')} and {_ranged(results, 'kl', 'nats of KL')} at the end."


def _shown(score: Summary) -> str:
    return f"{number(score.mean)} [{number(score.low)}, {number(score.high)}]"


def _ranged(results: Results, metric: str, unit: str) -> str:
    """ "responses of 9.1 (sparse) to 12.4 (uniform) tokens": equal scores at unequal cost are not equal."""
    ends = {arm: float(results.per_seed(arm, metric, LAST).mean()) for arm in results.arms}
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    return f"{number(ends[low])} ({low}) to {number(ends[high])} ({high}) {unit}"


def terminal(report: Report, width: int) -> Group:
    """For rich: quantities down, arms across, in blocks of as many arms as ``width`` columns hold with every number
    whole. Long names are folded."""
    names = report.results.arms
    arms = range(len(names))
    numbers = [max(len(line) for row in report.rows for line in _lines(row[arm].text)) for arm in arms]
    needs = [GAP + max(numbers[arm], min(len(names[arm]), ARM_WIDTH)) for arm in arms]
    blocks, room = [slice(0, 0)], width - TITLE_WIDTH
    for arm in arms:
        start = blocks[-1].start
        if arm > start and sum(needs[start : arm + 1]) > room:
            blocks.append(slice(arm, arm + 1))
        else:
            blocks[-1] = slice(start, arm + 1)
    return Group(*(_block(report, block, needs[block]) for block in blocks))


def _lines(text: str) -> list[str]:
    return text.replace(" [", "\n[").splitlines()


def _block(report: Report, arms: slice, needs: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", min_width=TITLE_WIDTH - GAP, overflow="fold")
    for arm, need in zip(report.results.arms[arms], needs, strict=True):
        table.add_column(Text(arm), justify="right", overflow="fold", width=need - GAP)
    for row in report.rows:
        table.add_row(Text(row[0].title), *(Text("\n".join(_lines(cell.text))) for cell in row[arms]))
    return table


def markdown(report: Report) -> str:
    """The same table, notes and verdict for a document."""
    arms = report.results.arms
    lines = [_line(["", *arms]), _line(["---", *("---:" for _ in arms)])]
    lines += [_line([row[0].title, *(cell.text for cell in row)]) for row in report.rows]
    return "\n".join([*lines, "", report.verdict, "", *(f"- {note}" for note in report.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write(report: Report, folder: Path) -> None:
    """``table.md`` to read, ``table.csv`` (one line per cell) and ``results.json`` (per seed as well) to compute on."""
    (folder / "table.md").write_text(markdown(report), encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "arm", "value", "low", "high", "kind"])
        for cell in (cell for row in report.rows for cell in row):
            writer.writerow([cell.key, cell.arm, *_numbers(cell.value)])
    write_json(folder / "results.json", as_json(report))


def _numbers(value: Value) -> list[object]:
    if isinstance(value, float):
        return [_finite(value), None, None, ""]
    kind = value.kind if isinstance(value, Summary) else "nominal 95 % paired bootstrap"
    return [_finite(value.mean), _finite(value.low), _finite(value.high), kind]


def as_json(report: Report) -> dict[str, Any]:
    """Table, verdict, and every quantity per seed; undefined numbers are null."""
    results = report.results
    per_seed = {
        arm: {
            quantity.key: [_finite(x) for x in results.per_seed(arm, quantity.metric, quantity.last)]
            for quantity in QUANTITIES
            if quantity.metric in results.curves[arm]
        }
        for arm in results.arms
    }
    table: dict[str, dict[str, Any]] = {}
    for cell in (cell for row in report.rows for cell in row):
        value, low, high, kind = _numbers(cell.value)
        table.setdefault(cell.key, {})[cell.arm] = {"value": value, "low": low, "high": high, "kind": kind}
    return {
        "task": results.task,
        "seeds": jsonable(results.seeds),
        "steps": _steps(results),
        "verdict": report.verdict,
        "notes": jsonable(report.notes),
        "table": table,
        "per_seed": per_seed,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
