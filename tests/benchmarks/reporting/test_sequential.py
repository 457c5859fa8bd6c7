"""Looking several times: limits against published tables, error rate and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.reporting.sequential import (
    HOPELESS,
    LOOKS,
    boundaries,
    chance_to_decide,
    is_hopeless,
    looks,
    spent,
    stand,
)


@pytest.mark.parametrize(
    ("count", "limits"),
    # Lan-DeMets spending of the O'Brien-Fleming kind, two-sided 5 %, as tabulated from Reboussin et al.'s program
    [(1, [1.96]), (2, [2.963, 1.969]), (3, [3.710, 2.511, 1.993]), (5, [4.877, 3.357, 2.680, 2.290, 2.031])],
)
def test_limits_are_the_published_ones(count, limits):
    assert boundaries([k / count for k in range(1, count + 1)], 0.05) == pytest.approx(limits, abs=1e-3)


def test_all_of_the_error_is_spent_at_the_end():
    assert spent(1.0, 0.05) == pytest.approx(0.05)
    assert spent(0.2, 0.05) < spent(0.5, 0.05) < 0.006


@pytest.mark.slow
@pytest.mark.parametrize(("most", "tests"), [(10, 1), (30, 1), (30, 3)])
def test_it_holds_its_error_rate_and_its_intervals_cover(most, tests):
    generator, schedule, truth = np.random.default_rng(0), looks(most, tests), 0.3
    stopped = [stand(row, schedule) for row in generator.normal(size=(3000, most))]
    assert np.mean([each.difference.decided for each in stopped]) <= 0.05 / tests + 0.01
    shifted = [stand(row, schedule).difference for row in generator.normal(truth, size=(1500, most))]
    assert np.mean([each.low <= truth <= each.high for each in shifted]) >= 1 - 0.05 / tests - 0.012


def test_looks_are_spaced_evenly_and_end_with_the_last_seed():
    assert [look.seeds for look in looks(30)] == [6, 12, 18, 24, 30]
    assert [look.seeds for look in looks(10)] == [4, 6, 8, 10]
    assert [look.p for look in looks(4)] == pytest.approx([0.05])
    assert len(looks(30)) == LOOKS
    with pytest.raises(ValueError, match="3 seeds are not tested: 4 or more are"):
        looks(3)


def test_the_interval_excludes_zero_exactly_where_it_is_decided_and_a_decision_stays():
    generator, schedule = np.random.default_rng(1), looks(20)
    for shift in (0.2, 0.6, 1.5):
        for row in generator.normal(shift, size=(60, 20)):
            found = stand(row, schedule)
            assert found.difference.decided is not (found.difference.low <= 0 <= found.difference.high)
            if found.difference.decided:
                later = np.concatenate([row[: found.look.seeds], -50 + row])
                assert stand(later, schedule) == found
    early = stand(generator.normal(size=3), schedule)
    assert (early.difference.decided, early.difference.low, early.look.seeds) == (False, None, 4)


@pytest.mark.parametrize("truth", [0.5, -0.5, 0.2])
@pytest.mark.parametrize("seen", [0.0, 0.25, 0.6])
def test_the_chance_to_decide_is_what_a_simulation_of_the_rest_says(seen, truth):
    generator, schedule = np.random.default_rng(2), looks(40)
    row = np.tile([-1.0, 1.0], 8) * np.sqrt(15 / 16) + seen  # of standard deviation 1
    found = stand(row, schedule)
    assert found.look.seeds == 16
    sums = row.sum() + generator.normal(truth, size=(20_000, 24)).sum(1)
    simulated = np.mean(np.sign(truth) * sums / np.sqrt(40) > stats.norm.isf(schedule[-1].p / 2))
    assert chance_to_decide(found, truth, schedule[-1]) == pytest.approx(simulated, abs=0.015)


def test_what_could_not_be_decided_any_more_is_hopeless():
    schedule = looks(40)
    found = stand(np.tile([-1.0, 1.0], 8), schedule)
    assert not is_hopeless(found, 0.5, schedule)
    assert is_hopeless(found, 0.05, schedule)
    assert chance_to_decide(found, 0.05, schedule[-1]) < HOPELESS < chance_to_decide(found, 0.5, schedule[-1])


def test_what_is_decided_or_over_is_not_hopeless():
    schedule = looks(10)
    clear = np.linspace(4.9, 5.1, 4)
    assert not is_hopeless(stand(clear, schedule), 0.1, schedule)
    assert not is_hopeless(stand(np.tile([-1.0, 1.0], 5), schedule), 0.1, schedule)
