"""A pilot: what the first runs of sparse say about how large a difference the comparison can find.

Only the spread of sparse is looked at, and no difference, so the pilot's runs stay in the comparison and bias nothing
(an internal pilot: Wittes and Brittain 1990, Statistics in Medicine 9:65).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.reporting.comparison_report import AVERAGE_SCORE, initial_deviation
from benchmarks.reporting.curve_readings import REFERENCE
from benchmarks.reporting.power import MOST_SEEDS, POWER, TARGET, detectable_difference, seeds_for
from benchmarks.reporting.statistics import FEWEST_SEEDS, LEVEL
from benchmarks.reporting.tables import number
from benchmarks.runs.finished_runs import load_results
from benchmarks.runs.progress import duration
from benchmarks.runs.single_run import Run
from benchmarks.runs.worker_pool import finished
from rlhf_core.names import counted


@dataclass(frozen=True, kw_only=True)
class Planned:
    """How large the comparison is to be."""

    arms: int
    seeds: int
    at_a_time: int
    """How many runs."""


def pilot_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs of sparse that have finished, and as many of its first ones as make ``FEWEST_SEEDS``; none where so many are
    not planned."""
    own = [run for run in runs if run.arm.label == REFERENCE]
    if len(own) < FEWEST_SEEDS or len({run.arm.label for run in runs}) < 2:
        return []
    done = [run for run in own if finished(run)]
    return done + [run for run in own if run not in done][: max(0, FEWEST_SEEDS - len(done))]


def what_can_be_found(pilot: Sequence[Run], planned: Planned) -> tuple[str, ...]:
    """Lines to read, from the pilot's finished runs: the smallest difference that is found with a probability of
    ``POWER``, and the seeds and hours that ``TARGET`` takes. The arms' runs are taken to vary as those of sparse do,
    and independently of them: a paired difference then varies by √2 times as much."""
    results = load_results("pilot", pilot)
    scores, unit = results.per_seed(REFERENCE, AVERAGE_SCORE.metric), initial_deviation(results)
    spread, tests = math.sqrt(2) * float(scores.std(ddof=1)), planned.arms - 1
    if spread == 0 or not unit > 0:
        return (f"{len(pilot)} seeds of {REFERENCE} have equal scores, so what can be found is not known.",)
    few, many = _range_of_spread(len(pilot))
    least = detectable_difference(spread, planned.seeds, tests)
    needed = seeds_for(TARGET * unit, spread, tests)
    seconds = float(results.curves[REFERENCE]["seconds"].sum(1).mean()) * planned.arms * needed / planned.at_a_time
    at_least = "at least " if needed == MOST_SEEDS else ""
    compared = f", {counted(tests, 'comparison')}" if tests > 1 else ""
    return (
        f"{planned.seeds} seeds find a difference in average score of {number(least)} ({number(least / unit)} initial "
        f"standard deviations) with a probability of {100 * POWER:.0f} % (paired t-test, 5 %{compared}). The spread is "
        f"that of {len(pilot)} runs of {REFERENCE}, which leave {number(few * least)} to {number(many * least)} open.",
        f"A difference of {TARGET} initial standard deviations, {number(TARGET * unit)}, takes {at_least}"
        f"{counted(needed, 'seed')} an arm: {counted(needed * planned.arms, 'run')}, about {duration(seconds)} on this "
        f"machine, {planned.at_a_time} at a time.",
    )


def _range_of_spread(seeds: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation from so many normal values, divided by it (by chi-squared)."""
    freedom = seeds - 1
    ends = (stats.chi2.ppf(tail, freedom) for tail in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    low, high = (math.sqrt(freedom / float(end)) for end in ends)
    return low, high
