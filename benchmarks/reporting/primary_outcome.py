"""The outcome that is tested: the average score over all steps, and every arm's difference in it to sparse.

Which test it is follows from the design: where all arms have the same seeds they are paired by seed, and where an arm
was given seeds of its own, all arms are compared by Welch's test.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from benchmarks.reporting import statistics
from benchmarks.reporting.curve_readings import REFERENCE
from benchmarks.reporting.power import TARGET
from benchmarks.reporting.sequential import Stand, is_hopeless, looks, stand
from benchmarks.reporting.statistics import Array, Difference, Results, by_seed, welch

AVERAGE_SCORE = "score"
"""The metric whose mean over all steps is the outcome."""


def name_of_test(results: Results) -> str:
    """The test, as it is written in a sentence."""
    return "the paired t-test" if results.paired else "Welch's t-test"


def test_of(results: Results) -> Callable[[Array, Array], Difference]:
    """The test of two arms' values by seed, first of the reference."""
    return by_seed if results.paired else welch


def kind_of_difference(results: Results) -> str:
    """What a row of differences by :func:`test_of` is called."""
    return f"paired difference to {REFERENCE}" if results.paired else f"difference to {REFERENCE} (Welch)"


def initial_deviation(results: Results) -> float:
    """Standard deviation of the score over the responses of the first step, mean over the reference's seeds: a unit
    that differences on different tasks share. NaN where it was not recorded."""
    curves = results.curves[REFERENCE]
    return float(curves["score_std"][:, 0].mean()) if "score_std" in curves else math.nan


def scaled(difference: Difference, factor: float) -> Difference:
    """A difference in another unit."""
    low, high = (None if end is None else factor * end for end in (difference.low, difference.high))
    return replace(difference, mean=factor * difference.mean, low=low, high=high)


def differences_to_reference(results: Results) -> dict[str, Difference]:
    """Average score of every arm against sparse, by :func:`name_of_test`; empty if sparse did not run. Where the
    comparison looks several times, each as it stands at the look that decided it, or at the newest."""
    if REFERENCE not in results.curves:
        return {}
    if results.most is not None:
        return {arm: found.difference for arm, found in stands(results).items()}
    return statistics.differences_to(*_scores(results), test_of(results))


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
    values = {arm: results.per_seed(arm, AVERAGE_SCORE) for arm in results.arms}
    return values.pop(REFERENCE), values
