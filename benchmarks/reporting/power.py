"""What a comparison can find: the smallest difference that so many seeds detect, and the seeds that a difference takes.

All of it is about two-sided t-tests at 5 %, paired unless said otherwise. Their power is a tail of the noncentral t
distribution (Cohen 1988, Statistical Power Analysis, chapter 2); of Welch's test, nearly so.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

from benchmarks.reporting.statistics import FEWEST_SEEDS, LEVEL

POWER = 0.8
"""How often a difference of the size named is found."""
TARGET = 0.25
"""The difference that comparisons are planned for, in initial standard deviations of the score."""
MOST_SEEDS = 100_000


def power(difference: float, spread: float, seeds: int, tests: int = 1) -> float:
    """How often the test finds a true mean ``difference``, where ``spread`` is the standard deviation of the paired
    differences over seeds. Of several ``tests``, it is what Holm's correction leaves at its strictest step."""
    freedom, shift = seeds - 1, abs(difference) / spread * math.sqrt(seeds)
    return _found(shift, freedom, tests)


def _found(shift: float, freedom: float, tests: int) -> float:
    """How often a true difference of ``shift`` standard errors is found."""
    limit = stats.t.ppf(1 - (1 - LEVEL) / tests / 2, freedom)
    wrong_side = stats.nct.cdf(-limit, freedom, shift)  # NaN for some numbers that are too small to count
    return float(stats.nct.sf(limit, freedom, shift) + np.nan_to_num(wrong_side))


def detectable_difference(spread: float, seeds: int, tests: int = 1) -> float:
    """The smallest true difference that the test finds with a probability of ``POWER``.

    Raises:
        ValueError: fewer than ``FEWEST_SEEDS`` seeds, which are not tested.
    """
    if seeds < FEWEST_SEEDS:
        raise ValueError(f"{seeds} seeds are not tested: {FEWEST_SEEDS} or more are")
    return smallest_found(spread / math.sqrt(seeds), seeds - 1, tests)


def smallest_found(error: float, freedom: float, tests: int = 1) -> float:
    """The same by the standard error of a difference and its degrees of freedom, whichever t-test it is."""
    most = 1.0
    while _found(most, freedom, tests) < POWER:
        most *= 2
    return error * float(optimize.brentq(lambda shift: _found(shift, freedom, tests) - POWER, 0.0, most))


def seeds_for(difference: float, spread: float, tests: int = 1) -> int:
    """The fewest seeds with which the test finds ``difference`` with a probability of ``POWER``, from
    ``FEWEST_SEEDS`` to ``MOST_SEEDS``."""
    return fewest_seeds(lambda seeds: power(difference, spread, seeds, tests) >= POWER)


def fewest_seeds(enough: Callable[[int], bool]) -> int:
    """The fewest seeds that are enough, from ``FEWEST_SEEDS`` to ``MOST_SEEDS``, where more of them always are."""
    few, many = FEWEST_SEEDS - 1, FEWEST_SEEDS
    while many < MOST_SEEDS and not enough(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return min(many, MOST_SEEDS)
