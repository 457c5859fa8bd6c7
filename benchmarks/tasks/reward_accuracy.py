"""How often a reward model agrees with people, how sure that number is, and how often simple rules agree with them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.data.preference_tokens import TokenisedExample
from benchmarks.reporting.statistics import LEVEL, Array

Margins = Mapping[str, Array]
"""Of each rule, score(chosen) − score(rejected) on every pair."""
REWARD_MODEL = "reward_model"
BASELINE = "surface_features"


@dataclass(frozen=True, kw_only=True)
class ClusteredMean:
    """A mean over pairs with its 95 % interval; the interval is None where the values give none."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """In percent, such as "66.7 % [63.4, 70.0]"."""
        interval = "no interval" if self.low is None else f"[{100 * self.low:.1f}, {100 * (self.high or 0):.1f}]"
        return f"{100 * self.mean:5.1f} % {interval}"


def clustered_mean(values: Array, clusters: Sequence[str]) -> ClusteredMean:
    """Mean x̄ of ``values``, one per pair, and its t-interval where pairs of one cluster (a prompt) may be alike.

    The standard error is √(G/(G-1) · Σ_g e_g²) / n, with e_g the sum of x - x̄ over cluster g, G clusters and n pairs
    (Liang and Zeger 1986, Biometrika 73:13); t has G - 1 degrees of freedom. With one pair per cluster this is the
    ordinary s/√n. One cluster has no interval, and neither have values that are all equal: a spread of 0 is no
    certainty.
    """
    mean = float(values.mean())
    place = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(place) < 2 or np.ptp(values) == 0:
        return ClusteredMean(mean=mean, low=None, high=None)
    sums = np.bincount([place[cluster] for cluster in clusters], values - mean)
    error = math.sqrt(len(place) / (len(place) - 1) * (sums**2).sum()) / len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(place) - 1)) * error
    return ClusteredMean(mean=mean, low=mean - half, high=mean + half)


def _accuracy(right: Array, keys: Sequence[str]) -> ClusteredMean:
    """A share, whose interval ends at 0 and 1."""
    found = clustered_mean(right, keys)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def compared(rows: Sequence[TokenisedExample], margins: Margins) -> dict[str, Any]:
    """Accuracy (share of pairs ranked right, ties half) of each rule on the same pairs, with its 95 % interval over
    prompts; and how much more often the reward model is right than the surface features, with the paired interval."""
    keys = [row.key for row in rows]
    right = {name: _right(some) for name, some in margins.items()}
    report: dict[str, Any] = {"pairs": len(rows), "prompts": len(set(keys))}
    report |= {name: asdict(_accuracy(some, keys)) for name, some in right.items()}
    if {REWARD_MODEL, BASELINE} <= set(right):
        report["reward_model_minus_surface_features"] = asdict(
            clustered_mean(right[REWARD_MODEL] - right[BASELINE], keys)
        )
    return report


def compared_lines(where: str, report: Mapping[str, Any]) -> list[str]:
    """What :func:`compared` found, to be read: a line for each rule."""
    found = {name: ClusteredMean(**some) for name, some in report.items() if isinstance(some, Mapping)}
    width = max(map(len, found))
    head = f"accuracy on {where}, {report['pairs']} pairs of {report['prompts']} prompts (95 % interval over prompts):"
    return [head, *(f"  {name.replace('_', ' ').ljust(width)}  {some}" for name, some in found.items())]


def by_confidence(rows: Sequence[TokenisedExample], margins: Array) -> dict[str, Any]:
    """Accuracy (share of pairs ranked right, ties half) of the margins score(chosen) − score(rejected) and of "longer
    wins" (in tokens): over all pairs, where the two rules disagree, and by how sure the person was, from 0 to 4, where
    that is known."""
    right = _right(margins).tolist()
    longer = [0.5 if row.longer_wins is None else float(row.longer_wins) for row in rows]
    shorter = [score for score, length in zip(right, longer, strict=True) if length == 0]
    report: dict[str, Any] = {
        "pairs": len(rows),
        "longer_wins": _mean(longer),
        "accuracy_where_the_shorter_won": _mean(shorter),
        "pairs_where_the_shorter_won": len(shorter),
    }
    levels = sorted({row.written.confidence for row in rows if row.written.confidence is not None})
    for level in levels:
        some = [i for i, row in enumerate(rows) if row.written.confidence == level]
        accuracy, longest = (_mean([rule[i] for i in some]) for rule in (right, longer))
        known = {"pairs": len(some), "accuracy": accuracy, "longer_wins": longest}
        report.setdefault("by_confidence", {})[str(level)] = known
    return report


def _right(margins: Array) -> Array:
    """1 for each pair ranked right, 0.5 for a tie, 0 for one ranked wrong."""
    return (np.sign(margins) + 1) / 2


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
