"""What a reader may take home from a comparison: one plain sentence, then what it rests on and what the arms cost."""

import math
from collections.abc import Mapping, Sequence

from benchmarks.reporting import tables
from benchmarks.reporting.curve_readings import LAST, REFERENCE
from benchmarks.reporting.power import POWER, TARGET, smallest_found
from benchmarks.reporting.primary_outcome import (
    AVERAGE_SCORE,
    differences_to_reference,
    hopeless,
    initial_deviation,
    name_of_test,
)
from benchmarks.reporting.statistics import FEWEST_SEEDS, Difference, Results, Summary, summarise
from benchmarks.reporting.tables import number


def verdict(results: Results) -> str:
    """What a reader may take home: which arms differ from sparse in average score, and what the others could differ by
    without these seeds finding it; without sparse, the best arm if its interval overlaps no other's. Length and KL
    follow, as equal scores at unequal cost are not equal."""
    arms = results.arms
    if len(arms) < 2:
        return "One arm ran; there is nothing to compare."
    scores = {arm: summarise(results.per_seed(arm, AVERAGE_SCORE)) for arm in arms}
    if any(math.isnan(score.mean) for score in scores.values()):
        return "An arm has no defined average score; nothing is concluded."
    said = _said_of_ranges(results, scores) or _said_of_differences(results) or _said_of_the_best(scores)
    length, kl = _ranged(results, "length", "tokens"), _ranged(results, "kl", "nats of KL")
    return f"{said}. At the end, responses have {length} and {kl}."


def _said_of_ranges(results: Results, scores: Mapping[str, Summary]) -> str:
    """Why nothing can be said, where an arm has a range only; "" where all have intervals."""
    if all(score.kind != "range" for score in scores.values()):
        return ""
    best = max(scores, key=lambda arm: scores[arm].mean)
    tied = [arm for arm in scores if number(scores[arm].mean) == number(scores[best].mean)]
    highest = f"{best} has the highest average score, {tables.text(scores[best])}"
    tie = f"{' and '.join(tied)} tie at the average score {number(scores[best].mean)}"
    why = _why_no_interval(results.fewest)
    if results.fewest < FEWEST_SEEDS <= max(results.counts.values()):
        why = f"Arms with fewer than {FEWEST_SEEDS} seeds have ranges only"
    return f"{why}, so no method is called better ({tie if len(tied) > 1 else highest})"


def _said_of_differences(results: Results) -> str:
    """Differences to sparse that are decided, and the smallest one that these seeds find; "" where none is tested."""
    tested = {arm: one for arm, one in differences_to_reference(results).items() if one.p is not None}
    if not tested:
        return ""
    decided = {arm: one for arm, one in tested.items() if one.decided}
    rest = {arm: one for arm, one in tested.items() if arm not in decided}
    sentences = _decided(results, decided) if decided else []
    if rest:
        none = f"No other difference to {REFERENCE} is shown"
        if not decided:
            none = f"No arm is shown to score higher or lower on average than {REFERENCE}"
        listed = ", ".join(f"{arm} {tables.text(one)}" for arm, one in rest.items())
        sentences += [f"{none}: {listed}", _what_is_open(results, list(rest.values()))]
    return ". ".join(sentences)


def _decided(results: Results, differences: Mapping[str, Difference]) -> list[str]:
    """Which arms score higher and which lower, then by how much."""
    higher = [arm for arm, one in differences.items() if one.mean > 0]
    lower = [arm for arm in differences if arm not in higher]
    sides = {"higher": higher, "lower": lower}
    said = [
        f"{_and(arms)} {'scores' if len(arms) == 1 else 'score'} {side} on average than {REFERENCE}"
        for side, arms in sides.items()
        if arms
    ]
    sizes = ", ".join(f"{arm} {tables.text(one)}{_p_in_brackets(one)}" for arm, one in differences.items())
    named = "" if results.paired else f" ({name_of_test(results)})"
    return ["; ".join(said), f"By how much{named}: {sizes}"]


def _and(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _p_in_brackets(difference: Difference) -> str:
    return "" if difference.p_holm is None else f" (p {number(difference.p_holm)})"


def _what_is_open(results: Results, undecided: Sequence[Difference]) -> str:
    """How large a difference these seeds may miss."""
    if results.most is not None and (left := hopeless(results)):
        return (
            f"Stopped after {results.how_many} of at most {results.most} seeds: even a true difference of {TARGET} "
            f"initial standard deviations would hardly be decided by the last ({', '.join(left)})"
        )
    tests = len(results.arms) - 1
    least = max(smallest_found(one.error or 0.0, one.freedom or 1.0, tests) for one in undecided)
    named = "" if results.paired else f" and {name_of_test(results)}"
    return (
        f"With these {results.counted_seeds}{named}, a true difference of less than {_in_both_units(least, results)} "
        f"would be missed in more than {100 * (1 - POWER):.0f} % of cases"
    )


def _in_both_units(difference: float, results: Results) -> str:
    """ "0.31 (0.16 initial standard deviations)"."""
    unit = initial_deviation(results)
    return number(difference) + (f" ({number(difference / unit)} initial standard deviations)" if unit > 0 else "")


def _said_of_the_best(scores: Mapping[str, Summary]) -> str:
    best = max(scores, key=lambda arm: scores[arm].mean)
    rivals = [arm for arm in scores if arm != best and scores[best].overlaps(scores[arm])]
    if rivals:
        others = ", ".join(f"{arm} {tables.text(scores[arm])}" for arm in rivals)
        return f"No winner: the interval of {best}, {tables.text(scores[best])}, overlaps that of {others}"
    return f"{best} has the highest average score, {tables.text(scores[best])}, and its interval overlaps no other's"


def _why_no_interval(seeds: int) -> str:
    if seeds == 1:
        return "One seed gives no range"
    return (
        f"{seeds} seeds give ranges only" if seeds < FEWEST_SEEDS else "Seeds that all agree in an arm give no interval"
    )


def _ranged(results: Results, metric: str, unit: str) -> str:
    """ "responses of 9.1 (sparse) to 12.4 (uniform) tokens": equal scores at unequal cost are not equal."""
    ends = {arm: float(results.per_seed(arm, metric, LAST).mean()) for arm in results.arms}
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if number(ends[low]) == number(ends[high]):
        return f"{number(ends[low])} {unit} in every arm"
    return f"{number(ends[low])} ({low}) to {number(ends[high])} ({high}) {unit}"
