"""What one may read as an outcome beside the average score. None of it is tested, and nothing is decided by it."""

import math
from collections.abc import Mapping, Sequence

from benchmarks.reporting.arms_row import ArmsRow
from benchmarks.reporting.curve_readings import (
    LAST,
    REFERENCE,
    at_level,
    best_of_mean,
    last_steps,
    scores_until,
    steps_to_pass,
)
from benchmarks.reporting.statistics import Array, Results, Summary, summarise
from benchmarks.reporting.tables import number

HEADING = "secondary, not tested"


def secondary_outcomes(results: Results) -> list[ArmsRow]:
    """How fast and how far: the score of the last steps, the first step at which the mean reaches sparse's best, and
    the score at equal KL and in equal time. Each is there where it can be told from what was recorded; the score of the
    last steps where it is not the average score itself."""
    return [*_at_the_end(results), *_step_of_the_best(results), *_at_equal_kl(results), *_in_equal_time(results)]


def _at_the_end(results: Results) -> list[ArmsRow]:
    if results.steps <= LAST:
        return []
    values = {arm: summarise(results.per_seed(arm, "score", LAST)) for arm in results.arms}
    return [ArmsRow("final_score", f"final score (last {last_steps(results)} steps)", values)]


def _step_of_the_best(results: Results) -> list[ArmsRow]:
    if REFERENCE not in results.curves or len(results.arms) < 2:
        return []
    scores = _curves(results, "score")
    best, _ = best_of_mean(scores[REFERENCE])
    passed = {arm: steps_to_pass(curve, best) for arm, curve in scores.items()}
    values = {arm: math.nan if step is None else step for arm, step in passed.items()}
    title = f"step where the mean score first reaches {REFERENCE}'s best, {number(best)}"
    return [ArmsRow("step_of_the_best", title, values)]


def _at_equal_kl(results: Results) -> list[ArmsRow]:
    """At the highest KL that every run reaches, so that no run is left out of an arm's mean."""
    kls = _curves(results, "kl")
    if len(kls) < max(2, len(results.arms)):
        return []
    level = min(float(kl.max(1).min()) for kl in kls.values())
    values = {arm: _score_at(curves, level) for arm, curves in results.curves.items()}
    return [ArmsRow("score_at_equal_kl", f"score at equal KL, {number(level)} nats", values)]


def _score_at(curves: Mapping[str, Array], level: float) -> Summary | float:
    return at_level(curves, level).per_run or math.nan


def _in_equal_time(results: Results) -> list[ArmsRow]:
    """In the time of the fastest arm, so that every arm has run for so long."""
    seconds = _curves(results, "seconds")
    if len(seconds) < max(2, len(results.arms)):
        return []
    limit = min(float(curve.sum(1).mean()) for curve in seconds.values())
    scores = _curves(results, "score")
    values = {arm: summarise(scores_until(limit, curve, scores[arm])) for arm, curve in seconds.items()}
    return [ArmsRow("score_in_equal_time", f"average score in equal time, {number(limit)} s", values)]


def _curves(results: Results, metric: str) -> dict[str, Array]:
    """A metric's curve, for every arm that has it."""
    return {arm: curves[metric] for arm, curves in results.curves.items() if metric in curves}


def note(results: Results, rows: Sequence[ArmsRow]) -> str:
    """What the rows that are there mean, and what their – means."""
    said = {
        "step_of_the_best": (
            f"{REFERENCE}'s best: the highest mean over seeds at a step; – where an arm's mean never gets there."
        ),
        "score_at_equal_kl": (
            "Equal KL: the highest that every run reaches; the score is that of a run's first step that reaches it."
        ),
        "score_in_equal_time": (
            "Equal time: how long the fastest arm's runs took, on average and on this machine; the score is the mean "
            "of the steps that a run had finished by then."
        ),
    }
    shown = [said[row.key] for row in rows if row.key in said]
    return " ".join([f"Rows under “{HEADING}” help to explain a result; nothing is decided by them.", *shown])
