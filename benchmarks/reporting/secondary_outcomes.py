"""What one may read as an outcome beside the average score. None of it is tested, and nothing is decided by it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.reporting.arms_row import ArmsRow
from benchmarks.reporting.curve_readings import (
    LAST,
    REFERENCE,
    best_of_mean,
    crossing,
    last_steps,
    scores_until,
    steps_to_pass,
)
from benchmarks.reporting.primary_outcome import kind_of_difference, test_of
from benchmarks.reporting.statistics import Array, Results, differences_to, nan_mean, summarise
from benchmarks.reporting.tables import number

HEADING = "secondary, not tested"


def secondary_outcomes(results: Results) -> list[ArmsRow]:
    """How fast and how far: the score of the first half of the steps and of the last ones, the first step at which the
    mean reaches sparse's best, and the score at equal KL and in equal time. Each is there where it can be told from
    what was recorded; the score of the first and last steps where there are more steps than the last ones. Under the
    first, the last and equal KL stand the differences to sparse."""
    return [
        *_early_and_late(results),
        *_step_of_the_best(results),
        *_at_equal_kl(results),
        *_in_equal_time(results),
    ]


def _early_and_late(results: Results) -> list[ArmsRow]:
    if results.steps <= LAST:
        return []
    half = results.steps // 2
    early = {arm: nan_mean(curve[:, :half]) for arm, curve in _curves(results, "score").items()}
    late = {arm: results.per_seed(arm, "score", LAST) for arm in results.arms}
    return [
        *_with_difference(results, "early_score", f"score of the first {half} steps", early),
        *_with_difference(results, "final_score", f"final score (last {last_steps(results)} steps)", late),
    ]


def _with_difference(results: Results, key: str, title: str, values: Mapping[str, Array]) -> list[ArmsRow]:
    """A quantity by seed and arm; and every arm's difference to sparse, where sparse ran beside others."""
    rows = [ArmsRow(key, title, {arm: summarise(some) for arm, some in values.items()})]
    others = {arm: some for arm, some in values.items() if arm != REFERENCE}
    if REFERENCE in values and others:
        found = differences_to(values[REFERENCE], others, test_of(results))
        differences = {arm: found.get(arm, math.nan) for arm in values}
        rows.append(ArmsRow(f"{key}_difference", f"… {kind_of_difference(results)}", differences))
    return rows


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
    level = min(float(np.where(np.isnan(kl), -np.inf, kl).max(1).min()) for kl in kls.values())
    if level == -np.inf:  # a run without one KL
        return []
    values = {arm: _scores_at(level, curves) for arm, curves in results.curves.items()}
    return _with_difference(results, "score_at_equal_kl", f"score at equal KL, {number(level)} nats", values)


def _scores_at(level: float, curves: Mapping[str, Array]) -> Array:
    """By seed; every run reaches the level."""
    return np.array([crossing(kl, score, level) for kl, score in zip(curves["kl"], curves["score"], strict=True)])


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
