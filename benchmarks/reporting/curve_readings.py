"""Quantities read from the paper's figures: failed runs, steps to pass sparse, reward at a KL; pure functions of
curves.

A curve is an array (seed, step). The definitions are the paper's where it has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.reporting.statistics import Array, Results, Summary, nan_mean, summarise
from benchmarks.reporting.tables import number

REFERENCE = "sparse"
"""The arm that others are compared with."""
LAST = 10
"""How many steps "the last steps" are; as many as there are where fewer were taken (:func:`last_steps`)."""
FIRST = 5


def last_steps(*results: Results) -> str:
    """How many steps "the last" of some results are, for a title: "10", or "3" where a run has 3; "3 to 10" where
    results differ."""
    counts = sorted({min(LAST, one.steps) for one in results})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A mean score of the last ``LAST`` steps below ``value`` is a failed run; ``why`` says where it is from."""

    value: float
    why: str

    def note(self, about: str) -> str:
        """For under a table."""
        return f"{about} below {number(self.value)} ({self.why})."


def threshold(results: Results, given: float | None) -> Threshold:
    """What is given, or the middle between where all runs began and where the best arm's median run ended.

    The paper counts runs below 6 of about 9; a number for our own models has to come from their own curves.
    """
    if given is not None:
        return Threshold(value=given, why="as given")
    start = float(np.mean([curve["score"][:, :FIRST].mean() for curve in results.curves.values()]))
    end = max(float(np.median(results.per_seed(arm, "score", LAST))) for arm in results.arms)
    return Threshold(
        value=(start + end) / 2,
        why=f"midway from the mean of the first {FIRST} steps, {start:z.2f}, to the best arm's median end, {end:z.2f}",
    )


def failed(results: Results, arm: str, limit: Threshold) -> int:
    """Runs whose last ``LAST`` steps average below the threshold."""
    return int((results.per_seed(arm, "score", LAST) < limit.value).sum())


def negative_kl(results: Results, arm: str) -> int:
    """Runs whose KL over the last ``LAST`` steps averages below 0, which no KL is."""
    return int((results.per_seed(arm, "kl", LAST) < 0).sum())


def steps_to_pass(curve: Array, best: float) -> int | None:
    """First step (from 1) at which the mean over seeds reaches ``best``; None if never."""
    above = np.flatnonzero(curve.mean(0) >= best)
    return int(above[0]) + 1 if len(above) else None


def best_of_mean(curve: Array) -> tuple[float, int]:
    """Highest mean over seeds, and its step (from 1)."""
    mean = curve.mean(0)
    return float(mean.max()), int(mean.argmax()) + 1


def crossing(kl: Array, score: Array, level: float) -> float | None:
    """The score at the first step whose KL reaches ``level``, of one run or of a mean; None if it never does."""
    reached = np.flatnonzero(kl >= level)
    return float(score[reached[0]]) if len(reached) else None


@dataclass(frozen=True, kw_only=True)
class AtLevel:
    """Score where KL first reaches a level: on the means over seeds, and over the single runs that reach it."""

    on_means: float | None
    per_run: Summary | None
    runs: int


def at_level(curves: Mapping[str, Array], level: float) -> AtLevel:
    """Both readings of "the reward at a KL", which differ: a mean of runs reaches a level that some runs never do."""
    found = [crossing(kl, score, level) for kl, score in zip(curves["kl"], curves["score"], strict=True)]
    known = np.array([value for value in found if value is not None])
    return AtLevel(
        on_means=crossing(curves["kl"].mean(0), curves["score"].mean(0), level),
        per_run=summarise(known) if len(known) else None,
        runs=len(known),
    )


def scores_until(limit: float, seconds: Array, scores: Array) -> Array:
    """The mean score, by seed, of the steps that a run had finished ``limit`` seconds after it began; NaN where none.

    Args:
        limit: in seconds.
        seconds: how long each step took, (seed, step).
        scores: (seed, step).
    """
    finished = np.cumsum(seconds, 1) <= limit * (1 + 1e-9)  # a sum in another order is not the same to the last digit
    return nan_mean(np.where(finished, scores, np.nan))


def blocks(curve: Array, size: int) -> Array:
    """Means of consecutive blocks of steps, by seed; the last may be shorter."""
    starts = range(0, curve.shape[1], size)
    return np.stack([nan_mean(curve[:, start : start + size]) for start in starts], axis=1)


def standardised(curve: Array, spread: Array) -> Array:
    """Gain since the first step in standard deviations of the first step's responses, by seed."""
    scale = np.where(spread[:, :1] > 0, spread[:, :1], np.nan)
    return (curve - curve[:, :1]) / scale


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where proxy and gold part: the block with the highest mean gold score, if gold is lower at the end than there by
    more than its standard error while the proxy is not; ``kl`` is None if they do not part."""

    kl: float | None
    gold_best: float
    gold_end: float
    proxy_best: float
    proxy_end: float


def parting(kl: Array, proxy: Array, gold: Array, *, size: int) -> Parting:
    """Read off means over seeds and ``size`` steps."""
    kls, proxies, golds = (blocks(curve, size) for curve in (kl, proxy, gold))
    mean = golds.mean(0)
    best = int(mean.argmax())
    drops = golds[:, best] - golds[:, -1]
    error = float(drops.std(ddof=1) / np.sqrt(len(drops))) if len(drops) > 1 else float("inf")
    parted = drops.mean() > error and proxies[:, -1].mean() >= proxies[:, best].mean()
    return Parting(
        kl=float(kls[:, best].mean()) if parted else None,
        gold_best=float(mean[best]),
        gold_end=float(mean[-1]),
        proxy_best=float(proxies[:, best].mean()),
        proxy_end=float(proxies[:, -1].mean()),
    )
