"""Power against simulation and a printed table, and its inverses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reporting.power import MOST_SEEDS, POWER, detectable_difference, power, seeds_for, smallest_found
from benchmarks.reporting.statistics import FEWEST_SEEDS, differences_to, welch, welch_error


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_as_in_the_published_tables(effect, seeds):
    # Cohen's small, medium and large effect, 5 %, two-sided, one sample, power .8 (G*Power: 199, 34, 15)
    assert seeds_for(effect, 1.0) == seeds
    assert power(effect, 1.0, seeds) >= POWER > power(effect, 1.0, seeds - 1)


@pytest.mark.parametrize("seeds", [5, 12])
def test_it_is_how_often_the_test_of_the_report_finds_the_difference(seeds):
    generator = np.random.default_rng(0)
    least = detectable_difference(2.0, seeds)
    draws = generator.normal(least, 2.0, size=(1500, seeds))
    found = [differences_to(np.zeros(seeds), {"abc": row})["abc"].p < 0.05 for row in draws]
    assert np.mean(found) == pytest.approx(POWER, abs=0.03)
    assert power(0.0, 2.0, seeds) == pytest.approx(0.05)


def test_it_is_how_often_welchs_test_finds_the_difference():
    generator = np.random.default_rng(0)
    error, freedom = welch_error([1.0, 2.0], [12, 6])
    least = smallest_found(error, freedom)
    draws = ((generator.normal(0, 1, 12), generator.normal(least, 2, 6)) for _ in range(1500))
    assert np.mean([welch(*pair).p < 0.05 for pair in draws]) == pytest.approx(POWER, abs=0.03)


@given(
    spread=st.floats(0.01, 100), seeds=st.integers(FEWEST_SEEDS, 60), tests=st.integers(1, 6), effect=st.floats(0.2, 3)
)
def test_the_inverses_agree(spread, seeds, tests, effect):
    assert power(0.0, spread, seeds, tests) == pytest.approx(0.05 / tests)
    least = detectable_difference(spread, seeds, tests)
    assert power(least, spread, seeds, tests) == pytest.approx(POWER, abs=1e-6)
    assert least <= detectable_difference(spread, seeds, tests + 1)
    needed = seeds_for(effect * spread, spread, tests)
    assert detectable_difference(spread, needed, tests) <= effect * spread * (1 + 1e-9)


def test_nothing_is_found_below_four_seeds_and_no_search_is_endless():
    with pytest.raises(ValueError, match="3 seeds are not tested: 4 or more are"):
        detectable_difference(1.0, 3)
    assert detectable_difference(0.0, 5) == 0
    assert seeds_for(1e-6, 1.0) == MOST_SEEDS
