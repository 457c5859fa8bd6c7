"""Statistics for a handful of seeds: intervals, differences between arms, and correction for multiple comparisons.

A *curve* is an array (seed, step); everything here reduces steps first and treats seeds as the sample. Below
``FEWEST_SEEDS`` there is a mean and a range, never an interval or a p-value.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Kind = Literal["95 % interval", "range"]

FEWEST_SEEDS = 4
LEVEL = 0.95
RESAMPLES = 9_999


@dataclass(frozen=True, kw_only=True)
class Results:
    """All runs of one experiment: per arm and metric, a curve (seed, step); NaN where a step did not define it.

    Arms are paired: row i of every curve belongs to ``seeds[i]``, which fixed prompts, lengths and uniforms. Where the
    arms have different seeds by design, ``own_seeds`` holds those of every arm, and they are not paired.
    """

    task: str
    seeds: tuple[int, ...]
    curves: Mapping[str, Mapping[str, Array]]
    own_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    most: int | None = None
    """The most seeds, where the comparison looks several times and may stop before; None where it looks once."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Labels, in the order asked for."""
        return tuple(self.curves)

    @property
    def paired(self) -> bool:
        """Whether all arms have the same seeds by design."""
        return not self.own_seeds

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds of one arm, in the order of its rows."""
        return self.own_seeds.get(arm, self.seeds)

    @property
    def counts(self) -> dict[str, int]:
        """How many seeds each arm has."""
        return {arm: len(self.seeds_of(arm)) for arm in self.arms}

    @property
    def fewest(self) -> int:
        """The number of seeds of the arm that has the fewest."""
        return min(self.counts.values())

    @property
    def how_many(self) -> str:
        """How many seeds an arm has: "5", or "5 to 20"."""
        few, many = self.fewest, max(self.counts.values())
        return f"{few}" if few == many else f"{few} to {many}"

    @property
    def counted_seeds(self) -> str:
        """The same with its noun, as "1 seed"."""
        return f"{self.how_many} seed{'' if self.how_many == '1' else 's'}"

    @property
    def steps(self) -> int:
        """How many steps each curve has."""
        return int(self.curves[self.arms[0]]["score"].shape[1])

    def per_seed(self, arm: str, metric: str, last: int | None = None) -> Array:
        """Mean over all steps, or over the ``last`` ones, for each seed; NaN steps are left out."""
        curve = self.curves[arm][metric]
        return nan_mean(curve if last is None else curve[:, -last:])


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A mean over seeds with its Student-t interval, or the range where there are too few seeds for one."""

    mean: float
    low: float
    high: float
    kind: Kind

    def overlaps(self, other: "Summary") -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean difference of an arm to the reference: its t-interval over seeds, and the p-value of the t-test, two-sided,
    before and after Holm's correction. None below ``FEWEST_SEEDS``, and where all differences are equal: a spread of 0
    is no certainty."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    spread: float | None = None
    """Standard deviation of the paired differences over seeds; None where arms are not paired."""
    error: float | None = None
    """Standard error of the mean."""
    freedom: float | None = None
    """Degrees of freedom of the t-test."""
    decided: bool = False
    """Whether it differs from 0, with a chance of error of 5 % over all arms."""


def nan_mean(curve: Array) -> Array:
    """Mean over the last axis of the entries that are not NaN; NaN where there is none."""
    known = ~np.isnan(curve)
    counts = known.sum(-1)
    sums = np.where(known, curve, 0.0).sum(-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def summarise(values: Array) -> Summary:
    """Mean and 95 % t-interval over seeds; below four seeds, and where all are equal, mean and range: a spread of 0 is
    no certainty."""
    mean, low, high, kind = band(values[:, None])
    if np.ptp(values) == 0:
        kind = "range"
    return Summary(mean=float(mean[0]), low=float(low[0]), high=float(high[0]), kind=kind)


def band(curve: Array) -> tuple[Array, Array, Array, Kind]:
    """Mean, lower and upper edge at every step of a curve (seed, step), and what the edges are.

    The interval is mean ± t(0.975, n - 1)·s/√n with the unbiased s.
    """
    seeds = len(curve)
    mean = curve.mean(0)
    if seeds < FEWEST_SEEDS:
        return mean, curve.min(0), curve.max(0), "range"
    half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * curve.std(0, ddof=1) / np.sqrt(seeds)
    return mean, mean - half, mean + half, "95 % interval"


def iqm(values: Array) -> float:
    """Interquartile mean: the mean without the lowest and the highest ⌊n/4⌋ seeds."""
    return float(stats.trim_mean(values, 0.25))


def variance_across_seeds(curve: Array) -> float:
    """Unbiased variance over seeds of a curve (seed, step) at each step, averaged over steps; NaN for one seed."""
    return float(curve.var(0, ddof=1).mean()) if len(curve) > 1 else float("nan")


def by_seed(reference: Array, values: Array) -> Difference:
    """The paired t-test of an arm's values against the reference's, where both have the same seeds."""
    return paired(values - reference)


def differences_to(
    reference: Array, others: Mapping[str, Array], test: Callable[[Array, Array], Difference] = by_seed
) -> dict[str, Difference]:
    """Each arm's per-seed values against the reference's by ``test``, corrected for how many arms there are."""
    raw = {name: test(reference, values) for name, values in others.items()}
    tested = {name: one.p for name, one in raw.items() if one.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        name: replace(one, p_holm=corrected.get(name), decided=corrected.get(name, 1.0) <= 1 - LEVEL)
        for name, one in raw.items()
    }


def paired(differences: Array, level: float = LEVEL) -> Difference:
    """The paired t-test of differences by seed, with the interval of this ``level``."""
    mean = float(differences.mean())
    nothing = len(differences) < FEWEST_SEEDS or np.isnan(mean)
    if nothing or np.ptp(differences) <= 1e-9 * abs(mean):
        return untested(mean)
    spread = float(differences.std(ddof=1))
    error = spread / math.sqrt(len(differences))
    return replace(_tested(mean, stats.ttest_1samp(differences, 0.0), error, level), spread=spread)


def welch(reference: Array, values: Array, level: float = LEVEL) -> Difference:
    """Welch's t-test of the values of two arms with different seeds, with the interval of this ``level`` (Welch 1947,
    Biometrika 34:28): neither the spreads nor the numbers of seeds need be equal."""
    mean = float(values.mean() - reference.mean())
    few = min(len(values), len(reference)) < FEWEST_SEEDS
    constant = max(np.ptp(values), np.ptp(reference)) <= 1e-9 * max(abs(values.mean()), abs(reference.mean()))
    if few or np.isnan(mean) or constant:
        return untested(mean)
    error, _ = welch_error([float(one.std(ddof=1)) for one in (values, reference)], [len(values), len(reference)])
    return _tested(mean, stats.ttest_ind(values, reference, equal_var=False), error, level)


def _tested(mean: float, test: Any, error: float, level: float) -> Difference:
    """A difference with the interval and the p-value of SciPy's ``test``."""
    low, high = map(float, test.confidence_interval(level))
    freedom = float(test.df)
    return Difference(mean=mean, low=low, high=high, p=float(test.pvalue), p_holm=None, error=error, freedom=freedom)


def welch_error(spreads: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Standard error of the difference of two means, from the standard deviations and how many values there are, and
    the degrees of freedom by Welch and Satterthwaite (Satterthwaite 1946, Biometrics Bulletin 2:110)."""
    shares = [spread**2 / count for spread, count in zip(spreads, counts, strict=True)]
    freedom = sum(shares) ** 2 / sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    return math.sqrt(sum(shares)), freedom


def untested(mean: float) -> Difference:
    """A mean alone."""
    return Difference(mean=mean, low=None, high=None, p=None, p_holm=None)


def bootstrap_interval(values: Array) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; BCa is undefined where all values are equal."""
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m is multiplied by m - i + 1, kept monotone, at most 1.

    Controls the chance of any false rejection over the whole family (Holm 1979, Scand. J. Statistics 6:65).
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    stepped = np.minimum(np.maximum.accumulate(np.asarray(p_values, float)[order] * factors), 1.0)
    corrected = np.empty(len(p_values))
    corrected[order] = stepped
    return [float(p) for p in corrected]


def rank_correlation(credit: Array, truth: Array) -> float:
    """Spearman's ρ over the tokens of one response; NaN where either side is constant and ranks mean nothing."""
    if len(credit) < 2 or np.ptp(credit) == 0 or np.ptp(truth) == 0:
        return float("nan")
    return float(stats.spearmanr(credit, truth).statistic)
