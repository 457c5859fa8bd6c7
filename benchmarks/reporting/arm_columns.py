"""Columns that tables of arms have in common, each computed for one arm."""

from collections.abc import Callable, Mapping

from benchmarks.reporting.curve_readings import LAST, REFERENCE, Threshold, failed, last_steps
from benchmarks.reporting.primary_outcome import differences_to_reference
from benchmarks.reporting.statistics import Results, summarise, variance_across_seeds
from benchmarks.reporting.tables import Value

Columns = Mapping[str, Callable[[Results, str], Value]]
"""By heading, in which {last} stands for how many steps the last ones are."""


def average(metric: str, last: int | None = None) -> Callable[[Results, str], Value]:
    """The mean over all steps, or the last few, with its interval over seeds."""
    return lambda results, arm: summarise(results.per_seed(arm, metric, last))


def runs_of_all(count: Callable[[Results, str], int]) -> Callable[[Results, str], Value]:
    """How many of an arm's runs, as "1 of 5"."""
    return lambda results, arm: f"{count(results, arm)} of {results.counts[arm]}"


def failures(limit: Threshold) -> Columns:
    """Runs that ended below the threshold."""
    return {"failed runs": runs_of_all(lambda results, arm: failed(results, arm, limit))}


def deviation_over_seeds(last: int | None = None) -> Callable[[Results, str], Value]:
    """Standard deviation of the score over seeds at a step, from the variance averaged over all steps or the last."""
    return lambda results, arm: variance_across_seeds(results.curves[arm]["score"][:, -(last or 0) :]) ** 0.5


AVERAGE_SCORE: Columns = {"average score": average("score")}
DIFFERENCE: Columns = {
    f"average score, difference to {REFERENCE}": lambda results, arm: differences_to_reference(results).get(arm)
}
"""Not corrected for the number of arms; None for sparse itself, and where it did not run."""
LAST_SCORE: Columns = {"score, last {last}": average("score", LAST)}
LAST_KL: Columns = {"KL, last {last}": average("kl", LAST)}
LAST_KL_AND_LENGTH: Columns = {**LAST_KL, "length, last {last}": average("length", LAST)}


def headings(columns: Columns, *results: Results) -> tuple[str, ...]:
    """The columns' headings above rows of these results."""
    return tuple(heading.replace("{last}", last_steps(*results)) for heading in columns)


def rows(columns: Columns, results: Results) -> list[tuple[Value, ...]]:
    """A row for every arm, which begins with its name."""
    return [(arm, *(column(results, arm) for column in columns.values())) for arm in results.arms]
