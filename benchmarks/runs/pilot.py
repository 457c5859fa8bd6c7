"""A pilot: what the first runs of sparse say about how large a difference the comparison can find.

Only the spread of sparse is looked at, and no difference, so the pilot's runs stay in the comparison and bias nothing
(an internal pilot: Wittes and Brittain 1990, Statistics in Medicine 9:65).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.reporting.curve_readings import REFERENCE
from benchmarks.reporting.power import (
    MOST_SEEDS,
    POWER,
    TARGET,
    detectable_difference,
    fewest_seeds,
    seeds_for,
    smallest_found,
)
from benchmarks.reporting.primary_outcome import AVERAGE_SCORE, initial_deviation
from benchmarks.reporting.statistics import FEWEST_SEEDS, LEVEL, welch_error
from benchmarks.reporting.tables import number
from benchmarks.runs.finished_runs import load_results
from benchmarks.runs.progress import duration
from benchmarks.runs.single_run import Run
from benchmarks.runs.worker_pool import finished
from rlhf_core.names import counted


@dataclass(frozen=True, kw_only=True)
class Planned:
    """How large the comparison is to be: how many seeds each arm has, and how many runs go at a time. ``paired``:
    whether the seeds are the same."""

    seeds: Mapping[str, int]
    at_a_time: int
    paired: bool = True

    @property
    def tests(self) -> int:
        """How many arms are compared with sparse."""
        return len(self.seeds) - 1

    @property
    def smallest(self) -> str:
        """The arm besides sparse that has the fewest seeds."""
        others = [arm for arm in self.seeds if arm != REFERENCE]
        return min(others, key=self.seeds.__getitem__)

    def scaled_to(self, seeds: int) -> dict[str, int]:
        """So many seeds of the smallest arm, and of the others in proportion."""
        fewest = self.seeds[self.smallest]
        return {arm: max(FEWEST_SEEDS, math.ceil(count * seeds / fewest)) for arm, count in self.seeds.items()}


def planned(runs: Sequence[Run], *, at_a_time: int) -> Planned:
    """The size of a comparison of these runs."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(run.arm.label, []).append(run.config.seed)
    return Planned(
        seeds={arm: len(some) for arm, some in seeds.items()},
        at_a_time=min(at_a_time, len(runs)),
        paired=len(set(map(tuple, seeds.values()))) == 1,
    )


def pilot_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs of sparse that have finished, and as many of its first ones as make ``FEWEST_SEEDS``; none where an arm has
    fewer."""
    own = [run for run in runs if run.arm.label == REFERENCE]
    counts = Counter(run.arm.label for run in runs)
    if not own or len(counts) < 2 or min(counts.values()) < FEWEST_SEEDS:
        return []
    done = [run for run in own if finished(run)]
    return done + [run for run in own if run not in done][: max(0, FEWEST_SEEDS - len(done))]


def what_can_be_found(pilot: Sequence[Run], size: Planned) -> tuple[str, ...]:
    """Lines to read, from the pilot's finished runs: the smallest difference that is found with a probability of
    ``POWER``, and the seeds and hours that ``TARGET`` takes. The arms' runs are taken to vary as those of sparse do,
    and independently of them: a paired difference then varies by √2 times as much."""
    results = load_results("pilot", pilot)
    scores, unit = results.per_seed(REFERENCE, AVERAGE_SCORE), initial_deviation(results)
    spread, tests = float(scores.std(ddof=1)), size.tests
    if spread == 0 or not unit > 0:
        return (f"{len(pilot)} seeds of {REFERENCE} have equal scores, so what can be found is not known.",)
    few, many = _range_of_spread(len(pilot))
    least = _found_by(size.seeds, spread, size)
    needed = _needed(TARGET * unit, spread, size)
    counts = size.scaled_to(needed)
    runs = sum(counts.values())
    seconds = float(results.curves[REFERENCE]["seconds"].sum(1).mean()) * runs / size.at_a_time
    at_least = "at least " if needed == MOST_SEEDS else ""
    compared = f", {counted(tests, 'comparison')}" if tests > 1 else ""
    test = "paired t-test" if size.paired else "Welch's t-test"
    an_arm = " an arm" if size.paired else ""
    return (
        f"{_said(size.seeds, size)} find a difference in average score of {number(least)} ({number(least / unit)} "
        f"initial standard deviations) with a probability of {100 * POWER:.0f} % ({test}, 5 %{compared}). The spread "
        f"is that of {len(pilot)} runs of {REFERENCE}, which leave {number(few * least)} to {number(many * least)} "
        "open.",
        f"A difference of {TARGET} initial standard deviations, {number(TARGET * unit)}, takes {at_least}"
        f"{_said(counts, size)}{an_arm}: {counted(runs, 'run')}, about {duration(seconds)} on this machine, "
        f"{size.at_a_time} at a time.",
    )


def _found_by(seeds: Mapping[str, int], spread: float, size: Planned) -> float:
    """The smallest difference that so many seeds of each arm find, whichever arm it is of: that of the smallest arm."""
    if size.paired:
        return detectable_difference(math.sqrt(2) * spread, seeds[REFERENCE], size.tests)
    return smallest_found(*welch_error([spread] * 2, [seeds[REFERENCE], seeds[size.smallest]]), size.tests)


def _needed(difference: float, spread: float, size: Planned) -> int:
    """How many seeds of the smallest arm find ``difference``, those of the others in proportion."""
    if size.paired:
        return seeds_for(difference, math.sqrt(2) * spread, size.tests)
    return fewest_seeds(lambda seeds: _found_by(size.scaled_to(seeds), spread, size) <= difference)


def _said(seeds: Mapping[str, int], size: Planned) -> str:
    """ "5 seeds", or "20 seeds of sparse and 5 of every other arm"."""
    own, others = seeds[REFERENCE], {count for arm, count in seeds.items() if arm != REFERENCE}
    if size.paired:
        return counted(own, "seed")
    which = "every other arm" if len(others) == 1 else f"{size.smallest}, which has the fewest,"
    return f"{counted(own, 'seed')} of {REFERENCE} and {seeds[size.smallest]:,} of {which}"


def _range_of_spread(seeds: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation from so many normal values, divided by it (by chi-squared)."""
    freedom = seeds - 1
    ends = (stats.chi2.ppf(tail, freedom) for tail in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    low, high = (math.sqrt(freedom / float(end)) for end in ends)
    return low, high
