"""The report of a comparison: a table of quantities by arm, and a one-sentence verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.base.json_files import jsonable, write_json
from benchmarks.reporting import statistics, tables
from benchmarks.reporting.curve_readings import LAST, REFERENCE, last_steps
from benchmarks.reporting.power import POWER, TARGET, detectable_difference
from benchmarks.reporting.sequential import LOOKS, Stand, is_hopeless, looks, stand
from benchmarks.reporting.statistics import FEWEST_SEEDS, Array, Difference, Results, Summary, summarise
from benchmarks.reporting.tables import Table, number
from rlhf_core.names import counted


@dataclass(frozen=True)
class Quantity:
    """A row of the table: a metric averaged over all steps (``last`` None) or the last few, then over seeds. In
    ``title``, {last} stands for how many steps those are."""

    key: str
    title: str
    metric: str
    last: int | None = None


AVERAGE_SCORE = Quantity("average_score", "average score", "score")
QUANTITIES = (
    AVERAGE_SCORE,
    Quantity("final_score", "final score (last {last} steps)", "score", LAST),
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
Number = Summary | Difference | float


@dataclass(frozen=True)
class ArmsRow:
    """One quantity: its value for every arm."""

    key: str
    title: str
    values: Mapping[str, Number]


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Everything printed and written: values by row and arm, notes under the table, and the verdict."""

    results: Results
    rows: tuple[ArmsRow, ...]
    notes: tuple[str, ...]
    verdict: str

    def __repr__(self) -> str:
        return f"Report({', '.join(self.results.arms)}; {counted(len(self.results.seeds), 'seed')}): {self.verdict}"

    @property
    def table(self) -> Table:
        """Quantities down, arms across."""
        rows = tuple((row.title, *row.values.values()) for row in self.rows)
        return Table(title="", columns=("", *self.results.arms), rows=rows, notes=self.notes, verdict=self.verdict)


def build(results: Results) -> Report:
    """Reduce the curves to the table, its notes and its verdict. Rows that would only repeat the average score are left
    out: the final score of a run with no more steps than it covers, and the IQM of so few seeds that none is cut off.
    """
    distinct = [one for one in QUANTITIES if one.key != "final_score" or results.steps > LAST]
    found = {one: {arm: summarise(values) for arm, values in _per_seed(results, one).items()} for one in distinct}
    measured = [
        ArmsRow(
            one.key,
            one.title.replace("{last}", last_steps(results)),
            {arm: known.get(arm, math.nan) for arm in results.arms},
        )
        for one, known in found.items()
        if known
    ]
    rows = (measured[0], *_beside_the_average(results), *measured[1:], *_across_seeds(results))
    return Report(results=results, rows=rows, notes=notes(results), verdict=verdict(results))


def _per_seed(results: Results, quantity: Quantity) -> dict[str, Array]:
    """Its values by seed, for every arm that has it."""
    arms = [arm for arm in results.arms if quantity.metric in results.curves[arm]]
    return {arm: results.per_seed(arm, quantity.metric, quantity.last) for arm in arms}


def _across_seeds(results: Results) -> list[ArmsRow]:
    """Variance over seeds at each step, averaged over steps: of the mean return, where logged, and of the score."""
    if len(results.seeds) == 1:
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


def _beside_the_average(results: Results) -> list[ArmsRow]:
    """The average score's IQM, and where sparse ran, the difference to it."""
    rows = []
    if len(results.seeds) >= FEWEST_SEEDS:
        iqms = {arm: statistics.iqm(results.per_seed(arm, "score")) for arm in results.arms}
        rows.append(ArmsRow("iqm", "average score, IQM of seeds", iqms))
    if found := differences_to_reference(results):
        differences = {arm: found.get(arm, math.nan) for arm in results.arms}
        rows.append(ArmsRow("difference", f"average score, paired difference to {REFERENCE}", differences))
        if (unit := initial_deviation(results)) > 0:
            effects = {arm: _scaled(found[arm], 1 / unit) if arm in found else math.nan for arm in results.arms}
            rows.append(ArmsRow("effect", "… in initial standard deviations of the score", effects))
        corrected = {arm: _p(found.get(arm)) for arm in results.arms}
        if not all(map(math.isnan, corrected.values())):
            rows.append(ArmsRow("p_holm", "p of it, Holm-corrected", corrected))
    return rows


def initial_deviation(results: Results) -> float:
    """Standard deviation of the score over the responses of the first step, mean over the reference's seeds: a unit
    that differences on different tasks share. NaN where it was not recorded."""
    curves = results.curves[REFERENCE]
    return float(curves["score_std"][:, 0].mean()) if "score_std" in curves else math.nan


def _scaled(difference: Difference, factor: float) -> Difference:
    low, high = (None if end is None else factor * end for end in (difference.low, difference.high))
    return replace(difference, mean=factor * difference.mean, low=low, high=high)


def _p(difference: Difference | None) -> float:
    return math.nan if difference is None or difference.p_holm is None else difference.p_holm


def differences_to_reference(results: Results) -> dict[str, Difference]:
    """Average score of every arm against sparse, paired by seed; empty if sparse did not run. Where the comparison
    looks several times, each as it stands at the look that decided it, or at the newest."""
    if REFERENCE not in results.curves:
        return {}
    if results.most is not None:
        return {arm: found.difference for arm, found in stands(results).items()}
    return statistics.differences_to(*_scores(results))


def stands(results: Results) -> dict[str, Stand]:
    """Where the arms of a comparison that looks several times stand."""
    reference, others = _scores(results)
    schedule = looks(results.most or 0, len(others))
    return {arm: stand(values - reference, schedule) for arm, values in others.items()}


def hopeless(results: Results) -> list[str]:
    """Arms that the seeds still to come would hardly decide, even if their difference to sparse were ``TARGET``."""
    found = stands(results)
    schedule, target = looks(results.most or 0, len(found)), TARGET * initial_deviation(results)
    return [arm for arm, each in found.items() if is_hopeless(each, target, schedule)]


def _scores(results: Results) -> tuple[Array, dict[str, Array]]:
    """Average scores by seed: of sparse, and of every other arm."""
    values = {arm: results.per_seed(arm, AVERAGE_SCORE.metric) for arm in results.arms}
    return values.pop(REFERENCE), values


def notes(results: Results) -> tuple[str, ...]:
    """Notes on how to read the numbers."""
    seeds = len(results.seeds)
    if seeds == 1:
        brackets = f"One seed has no range; below {FEWEST_SEEDS} seeds there are no intervals and no p-values."
    elif seeds < FEWEST_SEEDS:
        brackets = (
            f"Brackets: range over {seeds} seeds; below {FEWEST_SEEDS} seeds there are no intervals and no p-values."
        )
    else:
        brackets = (
            "IQM: the mean without the lowest and the highest quarter of the seeds. "
            f"Brackets: 95 % t-interval over {seeds} seeds; a difference is tested by the paired t-test, two-sided."
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
        "Raw value loss and plain explained variance are not comparable between methods: spreading a score changes "
        "the targets themselves. Compare value loss / within-position variance and explained variance over position.",
    )


def _undefined(results: Results) -> str:
    """What – means in the table of these results; empty where it has none that is expected."""
    ranks = any("credit_truth" in curves for curves in results.curves.values())
    reasons = ["credit that is equal on all tokens has no ranks"] if ranks else []
    if differences_to_reference(results):
        reasons.append(f"{REFERENCE} has no difference to itself")
    return f" – means undefined: {', and '.join(reasons)}." if reasons else ""


def verdict(results: Results) -> str:
    """What a reader may take home: which arms differ from sparse in average score, and what the others could differ by
    without these seeds finding it; without sparse, the best arm if its interval overlaps no other's. Length and KL
    follow."""
    arms = results.arms
    if len(arms) < 2:
        return "One arm ran; there is nothing to compare."
    scores = {arm: summarise(results.per_seed(arm, AVERAGE_SCORE.metric)) for arm in arms}
    if any(math.isnan(score.mean) for score in scores.values()):
        return "An arm has no defined average score; nothing is concluded."
    said = _said_of_ranges(results, scores) or _said_of_differences(results) or _said_of_the_best(scores)
    return f"{said}; {_ranged(results, 'length', 'tokens')} and {_ranged(results, 'kl', 'nats of KL')} at the end."


def _said_of_ranges(results: Results, scores: Mapping[str, Summary]) -> str:
    """Why nothing can be said, where an arm has a range only; "" where all have intervals."""
    if all(score.kind != "range" for score in scores.values()):
        return ""
    best = max(scores, key=lambda arm: scores[arm].mean)
    tied = [arm for arm in scores if number(scores[arm].mean) == number(scores[best].mean)]
    highest = f"{best} has the highest average score, {tables.text(scores[best])}"
    tie = f"{' and '.join(tied)} tie at the average score {number(scores[best].mean)}"
    why = _why_no_interval(len(results.seeds))
    return f"{why}, so no method is called better ({tie if len(tied) > 1 else highest})"


def _said_of_differences(results: Results) -> str:
    """Differences to sparse that are decided, and the smallest one that these seeds find; "" where none is tested."""
    tested = {arm: one for arm, one in differences_to_reference(results).items() if one.spread is not None}
    if not tested:
        return ""
    decided = [arm for arm, one in tested.items() if one.decided]
    parts = [
        f"{arm} scores {'higher' if tested[arm].mean > 0 else 'lower'} than {REFERENCE}, by "
        f"{tables.text(_scaled(tested[arm], math.copysign(1, tested[arm].mean)))}{_p_in_brackets(tested[arm])}"
        for arm in decided
    ]
    if rest := [arm for arm in tested if arm not in decided]:
        listed = ", ".join(f"{arm} {tables.text(tested[arm])}" for arm in rest)
        said = f"{'no' if not decided else 'no other'} difference to {REFERENCE} is decided: {listed}"
        parts.append(f"{said}. {_what_is_open(results, max(tested[arm].spread or 0.0 for arm in rest))}")
    said = "; ".join(parts)
    return said if decided and said.startswith(decided[0]) else said[0].upper() + said[1:]


def _what_is_open(results: Results, spread: float) -> str:
    """How small a difference would still have been found."""
    seeds = len(results.seeds)
    if results.most is not None and (left := hopeless(results)):
        return (
            f"Stopped after {seeds} of at most {results.most} seeds: even a true difference of {TARGET} initial "
            f"standard deviations would hardly be decided by the last ({', '.join(left)})"
        )
    least = detectable_difference(spread, seeds, len(results.arms) - 1)
    return f"These {seeds} seeds find a difference of {_in_both_units(least, results)} in {100 * POWER:.0f} % of cases"


def _p_in_brackets(difference: Difference) -> str:
    return "" if difference.p_holm is None else f" (p {number(difference.p_holm)})"


def _in_both_units(difference: float, results: Results) -> str:
    """ "0.31 (0.16 initial standard deviations)"."""
    unit = initial_deviation(results)
    return number(difference) + (f" ({number(difference / unit)} initial standard deviations)" if unit > 0 else "")


def _said_of_the_best(scores: Mapping[str, Summary]) -> str:
    best = max(scores, key=lambda arm: scores[arm].mean)
    rivals = [arm for arm in scores if arm != best and scores[best].overlaps(scores[arm])]
    if rivals:
        others = ", ".join(f"{arm} {tables.text(scores[arm])}" for arm in rivals)
        return f"No winner: the interval of {best}, {tables.text(scores[best])}, overlaps that of {others}"
    return f"{best} has the highest average score, {tables.text(scores[best])}, and its interval overlaps no other's"


def _why_no_interval(seeds: int) -> str:
    if seeds == 1:
        return "One seed gives no range"
    return (
        f"{seeds} seeds give ranges only" if seeds < FEWEST_SEEDS else "Seeds that all agree in an arm give no interval"
    )


def _ranged(results: Results, metric: str, unit: str) -> str:
    """ "responses of 9.1 (sparse) to 12.4 (uniform) tokens": equal scores at unequal cost are not equal."""
    ends = {arm: float(results.per_seed(arm, metric, LAST).mean()) for arm in results.arms}
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if number(ends[low]) == number(ends[high]):
        return f"{number(ends[low])} {unit} in every arm"
    return f"{number(ends[low])} ({low}) to {number(ends[high])} ({high}) {unit}"


def write(report: Report, folder: Path) -> None:
    """``table.md`` to read, ``table.csv`` and ``results.json`` (per seed as well) to compute on."""
    tables.write(report.table, folder)
    write_json(folder / "results.json", as_json(report))


def _numbers(value: Number) -> dict[str, object]:
    if isinstance(value, float):
        return {"value": _finite(value), "low": None, "high": None, "kind": ""}
    kind = value.kind if isinstance(value, Summary) else "95 % interval, paired"
    return {"value": _finite(value.mean), "low": _finite(value.low), "high": _finite(value.high), "kind": kind}


def as_json(report: Report) -> dict[str, Any]:
    """Table, verdict, and every quantity per seed; undefined numbers are null."""
    results = report.results
    per_seed: dict[str, dict[str, list[float | None]]] = {arm: {} for arm in results.arms}
    for quantity in QUANTITIES:
        for arm, values in _per_seed(results, quantity).items():
            per_seed[arm][quantity.key] = [_finite(value) for value in values]
    return {
        "task": results.task,
        "seeds": jsonable(results.seeds),
        "steps": results.steps,
        "verdict": report.verdict,
        "notes": jsonable(report.notes),
        "table": {row.key: {arm: _numbers(value) for arm, value in row.values.items()} for row in report.rows},
        "per_seed": per_seed,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
