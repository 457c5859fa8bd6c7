"""The report of a comparison: a table of quantities by arm, and a one-sentence verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.base.json_files import jsonable, write_json
from benchmarks.reporting import secondary_outcomes, statistics, tables
from benchmarks.reporting.arms_row import ArmsRow, Number
from benchmarks.reporting.comparison_verdict import verdict
from benchmarks.reporting.curve_readings import LAST, REFERENCE, last_steps
from benchmarks.reporting.primary_outcome import (
    AVERAGE_SCORE,
    differences_to_reference,
    initial_deviation,
    kind_of_difference,
    name_of_test,
    scaled,
)
from benchmarks.reporting.sequential import LOOKS
from benchmarks.reporting.statistics import FEWEST_SEEDS, Array, Difference, Results, Summary, summarise
from benchmarks.reporting.tables import Table
from rlhf_core.names import counted


@dataclass(frozen=True)
class Quantity:
    """A row of the table: a metric averaged over all steps (``last`` None) or the last few, then over seeds. In
    ``title``, {last} stands for how many steps those are."""

    key: str
    title: str
    metric: str
    last: int | None = None


QUANTITIES = (
    Quantity("held_out_score", "held-out score, at the end", "held_out_score"),
    Quantity("held_out_gold", "held-out true score, at the end", "held_out_gold"),
    Quantity("credit_truth", "rank correlation, credit with truth", "credit_truth"),
    Quantity("value_loss", "value loss", "value_loss"),
    Quantity("value_loss_paper", "value loss, the paper's mean", "value_loss_paper"),
    Quantity("value_loss_normalised", "value loss / within-position variance", "value_loss_normalised"),
    Quantity("explained_variance", "explained variance", "explained_variance"),
    Quantity(
        "explained_variance_over_position", "explained variance over position", "explained_variance_over_position"
    ),
    Quantity("return_variance", "variance of returns, batch", "return_variance"),
    Quantity("return_variance_within_position", "… within positions", "return_variance_within_position"),
    Quantity("kl", "KL, nats per response (last {last})", "kl", LAST),
    Quantity("length", "length, tokens (last {last})", "length", LAST),
)
SCORES = (
    Quantity("average_score", "average score", AVERAGE_SCORE),
    Quantity("final_score", "final score", AVERAGE_SCORE, LAST),
)
"""What is written per seed besides; the table's own rows of these have intervals and tests of their own."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Everything printed and written: values by row and arm, first of the outcome that is tested, then of the rest;
    notes under the table, and the verdict."""

    results: Results
    primary: tuple[ArmsRow, ...]
    secondary: tuple[ArmsRow, ...]
    notes: tuple[str, ...]
    verdict: str

    def __repr__(self) -> str:
        return f"Report({', '.join(self.results.arms)}; {self.results.counted_seeds}): {self.verdict}"

    @property
    def rows(self) -> tuple[ArmsRow, ...]:
        """All of them."""
        return self.primary + self.secondary

    @property
    def table(self) -> Table:
        """Quantities down, arms across."""
        return Table(
            title="",
            columns=("", *self.results.arms),
            rows=tuple((row.title, *row.values.values()) for row in self.rows),
            parts={len(self.primary): secondary_outcomes.HEADING},
            notes=self.notes,
            verdict=self.verdict,
        )


def build(results: Results) -> Report:
    """Reduce the curves to the table, its notes and its verdict. Rows that would only repeat the average score are left
    out: the final score of a run with no more steps than it covers, and the IQM of so few seeds that none is cut off.
    """
    found = {one: {arm: summarise(values) for arm, values in _per_seed(results, one).items()} for one in QUANTITIES}
    measured = [
        ArmsRow(
            one.key,
            one.title.replace("{last}", last_steps(results)),
            {arm: known.get(arm, math.nan) for arm in results.arms},
        )
        for one, known in found.items()
        if known
    ]
    outcomes = secondary_outcomes.secondary_outcomes(results)
    return Report(
        results=results,
        primary=tuple(_primary(results)),
        secondary=(*outcomes, *measured, *_across_seeds(results)),
        notes=notes(results, outcomes),
        verdict=verdict(results),
    )


def _per_seed(results: Results, quantity: Quantity) -> dict[str, Array]:
    """Its values by seed, for every arm that has it."""
    arms = [arm for arm in results.arms if quantity.metric in results.curves[arm]]
    return {arm: results.per_seed(arm, quantity.metric, quantity.last) for arm in arms}


def _across_seeds(results: Results) -> list[ArmsRow]:
    """Variance over seeds at each step, averaged over steps: of the mean return, where logged, and of the score."""
    if results.how_many == "1":
        return []
    titles = {"return_mean": "variance of a step's mean return across seeds", "score": "… of its score"}
    return [
        ArmsRow(
            f"{metric}_variance_across_seeds",
            title,
            {arm: statistics.variance_across_seeds(curves[metric]) for arm, curves in results.curves.items()},
        )
        for metric, title in titles.items()
        if all(metric in curves for curves in results.curves.values())
    ]


def _primary(results: Results) -> list[ArmsRow]:
    """The average score, its IQM, and where sparse ran, the difference to it; where arms have seeds of their own, how
    many."""
    scores = {arm: summarise(results.per_seed(arm, AVERAGE_SCORE)) for arm in results.arms}
    rows = [ArmsRow("average_score", "average score", scores)]
    if not results.paired:
        rows.append(ArmsRow("seeds", "… over how many seeds", results.counts))
    if results.fewest >= FEWEST_SEEDS:
        iqms = {arm: statistics.iqm(results.per_seed(arm, "score")) for arm in results.arms}
        rows.append(ArmsRow("iqm", "average score, IQM of seeds", iqms))
    if found := differences_to_reference(results):
        differences = {arm: found.get(arm, math.nan) for arm in results.arms}
        rows.append(ArmsRow("difference", f"average score, {kind_of_difference(results)}", differences))
        if (unit := initial_deviation(results)) > 0:
            effects = {arm: scaled(found[arm], 1 / unit) if arm in found else math.nan for arm in results.arms}
            rows.append(ArmsRow("effect", "… in initial standard deviations of the score", effects))
        corrected = {arm: _p(found.get(arm)) for arm in results.arms}
        if not all(map(math.isnan, corrected.values())):
            rows.append(ArmsRow("p_holm", "p of it, Holm-corrected", corrected))
    return rows


def _p(difference: Difference | None) -> float:
    return math.nan if difference is None or difference.p_holm is None else difference.p_holm


def notes(results: Results, outcomes: Sequence[ArmsRow]) -> tuple[str, ...]:
    """Notes on how to read the numbers, among them the secondary ``outcomes`` that are shown."""
    if results.how_many == "1":
        brackets = f"One seed has no range; below {FEWEST_SEEDS} seeds there are no intervals and no p-values."
    elif results.fewest < FEWEST_SEEDS:
        brackets = (
            f"Brackets: range over {results.how_many} seeds{_or_interval(results)}; below {FEWEST_SEEDS} seeds there "
            "are no intervals and no p-values."
        )
    else:
        brackets = (
            "IQM: the mean without the lowest and the highest quarter of the seeds. "
            f"Brackets: 95 % t-interval over {results.how_many} seeds; {_tested_by(results)}"
        )
    if results.most is not None:
        brackets += (
            f" It looks up to {LOOKS} times on the way to at most {results.most} seeds: brackets of a difference "
            "are repeated confidence intervals, which keep to 5 % over all looks and arms."
        )
    return (
        f"{results.task}, {counted(results.steps, 'step')}; averages are over all steps unless the row says otherwise."
        f"{_undefined(results)}",
        brackets,
        secondary_outcomes.note(results, outcomes),
        "Raw value loss and plain explained variance are not comparable between methods: spreading a score changes "
        "the targets themselves. Compare value loss / within-position variance and explained variance over position.",
    )


def _or_interval(results: Results) -> str:
    return f", from {FEWEST_SEEDS} on the 95 % t-interval" if max(results.counts.values()) >= FEWEST_SEEDS else ""


def _tested_by(results: Results) -> str:
    why = "" if results.paired else "arms have seeds of their own, so "
    return f"{why}a difference is tested by {name_of_test(results)}, two-sided."


def _undefined(results: Results) -> str:
    """What – means in the table of these results; empty where it has none that is expected."""
    ranks = any("credit_truth" in curves for curves in results.curves.values())
    reasons = ["credit that is equal on all tokens has no ranks"] if ranks else []
    if differences_to_reference(results):
        reasons.append(f"{REFERENCE} has no difference to itself")
    return f" – means undefined: {', and '.join(reasons)}." if reasons else ""


def write(report: Report, folder: Path) -> None:
    """``table.md`` to read, ``table.csv`` and ``results.json`` (per seed as well) to compute on."""
    tables.write(report.table, folder)
    write_json(folder / "results.json", as_json(report))


def _numbers(value: Number, difference: str) -> dict[str, object]:
    if isinstance(value, float | int):
        return {"value": _finite(value), "low": None, "high": None, "kind": ""}
    kind = value.kind if isinstance(value, Summary) else f"95 % interval, {difference}"
    return {"value": _finite(value.mean), "low": _finite(value.low), "high": _finite(value.high), "kind": kind}


def as_json(report: Report) -> dict[str, Any]:
    """Table, verdict, and every quantity per seed; undefined numbers are null."""
    results = report.results
    per_seed: dict[str, dict[str, list[float | None]]] = {arm: {} for arm in results.arms}
    for quantity in (*SCORES, *QUANTITIES):
        for arm, values in _per_seed(results, quantity).items():
            per_seed[arm][quantity.key] = [_finite(value) for value in values]
    kind = "paired" if results.paired else "Welch"
    return {
        "task": results.task,
        "seeds": jsonable(results.seeds),
        "own_seeds": jsonable(results.own_seeds),
        "steps": results.steps,
        "verdict": report.verdict,
        "notes": jsonable(report.notes),
        "table": {row.key: {arm: _numbers(value, kind) for arm, value in row.values.items()} for row in report.rows},
        "secondary": [row.key for row in report.secondary],
        "per_seed": per_seed,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
