"""A comparison that looks at its results several times, and may stop at each look, without finding more false
differences than one that looks once.

How much of the 5 % is spent up to each look follows Lan and DeMets (1983, Biometrika 70:659) with a spending function
of the O'Brien-Fleming kind: early looks stop for a large difference only. The limits come from the recursion of
Armitage, McPherson and Rowe (1969, J. R. Statist. Soc. A 132:235), and are applied to a t-test by its p-value (Jennison
and Turnbull 2000, Group Sequential Methods, section 3.8). Of several arms, each has its share of the 5 % (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import optimize, stats

from benchmarks.reporting.statistics import FEWEST_SEEDS, LEVEL, Array, Difference, paired, untested

LOOKS = 5
GRID = 801
HOPELESS = 0.1
"""A comparison stops where even a difference of the size looked for would be found less often than this."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look: after how many seeds, and the p-value below which a difference is decided."""

    seeds: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Stand:
    """An arm at a look: its difference, with the repeated confidence interval, which excludes 0 exactly where the
    difference is decided (Jennison and Turnbull 1989, J. R. Statist. Soc. B 51:305)."""

    look: Look
    difference: Difference


@cache
def looks(most: int, tests: int = 1) -> tuple[Look, ...]:
    """Up to ``LOOKS`` looks, evenly spaced, the last after ``most`` seeds. ``tests``: arms compared to the reference.

    Raises:
        ValueError: fewer than ``FEWEST_SEEDS`` seeds in all.
    """
    if most < FEWEST_SEEDS:
        raise ValueError(f"{most} seeds are not tested: {FEWEST_SEEDS} or more are")
    seeds = sorted({max(FEWEST_SEEDS, math.ceil(most * k / LOOKS)) for k in range(1, LOOKS + 1)})
    limits = boundaries([n / most for n in seeds], (1 - LEVEL) / tests)
    return tuple(Look(seeds=n, p=float(2 * stats.norm.sf(limit))) for n, limit in zip(seeds, limits, strict=True))


def stand(differences: Array, schedule: Sequence[Look]) -> Stand:
    """Where an arm stands from its paired differences by seed: at the first look that decided it, or at the newest one
    that all its seeds have reached."""
    reached = [look for look in schedule if look.seeds <= len(differences)]
    if not reached:
        return Stand(look=schedule[0], difference=untested(float(differences.mean())))
    stands = (_at(look, differences) for look in reached)
    return next((found for found in stands if found.difference.decided), None) or _at(reached[-1], differences)


def _at(look: Look, differences: Array) -> Stand:
    found = paired(differences[: look.seeds], 1 - look.p)
    return Stand(look=look, difference=replace(found, decided=found.p is not None and found.p < look.p))


def is_hopeless(found: Stand, target: float, schedule: Sequence[Look]) -> bool:
    """Whether, even if the true difference were ``target`` in either direction, the last look would decide it in fewer
    than ``HOPELESS`` of cases, given what has been seen."""
    if found.difference.decided or found.look == schedule[-1] or not found.difference.spread:
        return False
    return max(chance_to_decide(found, sign * target, schedule[-1]) for sign in (1, -1)) < HOPELESS


def chance_to_decide(found: Stand, truth: float, last: Look) -> float:
    """How often the ``last`` look decides, on the side of a true difference of ``truth``, given what has been seen
    (conditional power: Lan and Wittes 1988, Biometrics 44:579)."""
    spread, fraction = found.difference.spread or math.nan, found.look.seeds / last.seeds
    seen = found.difference.mean / spread * math.sqrt(found.look.seeds * fraction)
    to_come = truth / spread * math.sqrt(last.seeds) * (1 - fraction)
    side = math.copysign(1, truth)
    return float(stats.norm.sf((stats.norm.isf(last.p / 2) - side * (seen + to_come)) / math.sqrt(1 - fraction)))


def spent(fraction: float, alpha: float) -> float:
    """How much of ``alpha`` is spent once this fraction of all seeds has run: on either side half of it, by
    2 - 2Φ(z(α/4) / √t)."""
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(fraction)))


def boundaries(fractions: Sequence[float], alpha: float) -> tuple[float, ...]:
    """The limit of |z| at looks after these ``fractions`` of all seeds, the last of which is 1."""
    limits: list[float] = []
    going, before = _Going(sums=np.zeros(1), mass=np.ones(1)), 0.0
    for fraction in fractions:
        due = spent(fraction, alpha) - (spent(before, alpha) if before else 0.0)
        step, root = math.sqrt(fraction - before), math.sqrt(fraction)
        edge = float(optimize.brentq(lambda edge, now=going, step=step, due=due: now.crossing(edge, step) - due, 0, 40))
        limits.append(edge / root)
        going, before = going.after(edge, step), fraction
    return tuple(limits)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Going:
    """The comparisons that have not stopped: their sums z·√t, whose increments are independent and normal where there
    is no difference, on a grid."""

    sums: Array
    mass: Array

    def crossing(self, edge: float, step: float) -> float:
        """How many cross the edge, on either side, with an increment of standard deviation ``step``."""
        beyond = stats.norm.sf((edge - self.sums) / step) + stats.norm.cdf((-edge - self.sums) / step)
        return float((self.mass * beyond).sum())

    def after(self, edge: float, step: float) -> "_Going":
        """Those that stay within the edge."""
        sums = np.linspace(-edge, edge, GRID)
        width = np.full(GRID, sums[1] - sums[0])
        width[[0, -1]] /= 2  # the trapezoidal rule
        density = (self.mass * stats.norm.pdf((sums[:, None] - self.sums) / step) / step).sum(1)
        return _Going(sums=sums, mass=width * density)
