"""Statistics against numbers worked out by hand or by another route, and the refusals below four seeds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.reporting.statistics import (
    Results,
    Summary,
    band,
    bootstrap_interval,
    differences_to,
    holm,
    iqm,
    nan_mean,
    rank_correlation,
    summarise,
    variance_across_seeds,
    welch,
    welch_error,
)


def array(*values):
    return np.array(values, dtype=float)


def test_t_interval_by_hand():
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445 from a printed table
    summary = summarise(array(1, 2, 3, 4, 5))
    half = 2.776445 * np.sqrt(2.5) / np.sqrt(5)
    assert summary.mean == 3
    assert summary.low == pytest.approx(3 - half, abs=1e-5)
    assert summary.high == pytest.approx(3 + half, abs=1e-5)
    assert summary.kind == "95 % interval"


def test_t_interval_covers_about_95_percent():
    generator = np.random.default_rng(0)
    inside = [s.low <= 1 <= s.high for s in (summarise(generator.normal(1, 2, size=5)) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_below_four_seeds_there_is_only_a_range(seeds):
    values = array(4, -1, 2)[:seeds]
    summary = summarise(values)
    assert (summary.low, summary.high, summary.kind) == (values.min(), values.max(), "range")
    difference = differences_to(np.zeros(seeds), {"abc": values})["abc"]
    assert difference.mean == pytest.approx(values.mean())
    assert (difference.low, difference.high, difference.p, difference.p_holm) == (None, None, None, None)


def test_band_is_an_interval_at_every_step():
    curve = np.random.default_rng(0).normal(size=(5, 3))
    mean, low, high, _ = band(curve)
    for step in range(3):
        alone = summarise(curve[:, step])
        assert (mean[step], low[step], high[step]) == pytest.approx((alone.mean, alone.low, alone.high))


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0, 1, 2, 3), 1.5), ((100, 1, 2, 3, -50), 2), ((1, 2, 3), 2), ((8, 1, 2, 3, 4, 5, 6, 99), 4.5)],
)
def test_interquartile_mean_by_hand(values, expected):
    assert iqm(array(*values)) == pytest.approx(expected)


def test_nan_steps_are_left_out_and_all_nan_stays_nan():
    curve = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    assert nan_mean(curve)[0] == 2
    assert np.isnan(nan_mean(curve)[1])


def test_last_steps_only():
    results = Results(task="t", seeds=(0, 1), curves={"a": {"score": np.array([[0.0, 1, 5], [0, 3, 9]])}})
    assert results.per_seed("a", "score").tolist() == [2, 4]
    assert results.per_seed("a", "score", last=2).tolist() == [3, 6]


def test_variance_across_seeds_by_hand():
    # step 1: values 0, 2, variance 2; step 2: 1, 5, variance 8
    assert variance_across_seeds(np.array([[0.0, 1.0], [2.0, 5.0]])) == 5
    assert np.isnan(variance_across_seeds(np.array([[0.0, 1.0]])))


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_the_closed_test_of_bonferroni_rejects(p_values):
    # Holm is the closure of Bonferroni: p_i adjusted is the largest Bonferroni p over all families that contain i
    corrected = holm(p_values)
    for i, value in enumerate(corrected):
        families = (
            family
            for size in range(1, len(p_values) + 1)
            for family in itertools.combinations(range(len(p_values)), size)
            if i in family
        )
        closed = max(min(1.0, len(family) * min(p_values[j] for j in family)) for family in families)
        assert value == pytest.approx(closed)


def test_paired_t_test_by_hand():
    # squares .25 + 1 + .04 + .81 + .16 = 2.26, so s² = (2.26 - 5 · .52²) / 4; t(0.975, 4) as above
    found = differences_to(np.zeros(5), {"abc": array(0.5, 1.0, -0.2, 0.9, 0.4)})["abc"]
    spread = np.sqrt((2.26 - 5 * 0.2704) / 4)
    half = 2.776445 * spread / np.sqrt(5)
    assert (found.mean, found.spread) == pytest.approx((0.52, spread))
    assert (found.low, found.high) == pytest.approx((0.52 - half, 0.52 + half), abs=1e-5)
    assert found.p == pytest.approx(2 * stats.t.sf(0.52 / spread * np.sqrt(5), 4))
    assert (found.p < 0.05) is (found.low > 0)


def test_differences_that_are_all_equal_are_not_tested():
    found = differences_to(array(1, 2, 3, 4, 5), {"abc": array(2, 3, 4, 5, 6)})["abc"]
    assert found.mean == pytest.approx(1)
    assert (found.low, found.high, found.p, found.spread) == (None,) * 4


@pytest.mark.parametrize("seeds", [1, 4, 9])
def test_seeds_that_all_agree_give_no_interval(seeds):
    same = summarise(np.full(seeds, 0.3))
    assert (same.mean, same.low, same.high, same.kind) == (pytest.approx(0.3),) * 3 + ("range",)


def test_differences_are_paired_by_seed():
    # Seeds differ by tens, arms by one: unpaired, nothing would show.
    reference = array(0, 10, 20, 30, 40, 50)
    found = differences_to(reference, {"abc": reference + array(1, 1.1, 0.9, 1, 1.2, 0.8)})["abc"]
    assert 0.8 <= found.low < found.high <= 1.2
    unpaired = stats.ttest_ind(reference, reference + 1)
    assert unpaired.pvalue > 0.9
    assert found.p < 1e-4


def test_welchs_test_by_hand():
    # 1, 2, 3, 4: mean 2.5, variance 5/3; 2, 4, 6, 8, 10: mean 6, variance 10. Shares 5/12 and 2, error √(29/12);
    # degrees (29/12)² / ((5/12)²/3 + 2²/4) = 5.5208
    found = welch(array(1, 2, 3, 4), array(2, 4, 6, 8, 10))
    assert (found.mean, found.error) == pytest.approx((3.5, np.sqrt(29 / 12)))
    assert found.freedom == pytest.approx(5.5208, abs=1e-4)
    assert welch_error([np.sqrt(5 / 3), np.sqrt(10)], [4, 5]) == pytest.approx((found.error, found.freedom))
    half = stats.t.ppf(0.975, found.freedom) * found.error
    assert (found.low, found.high) == pytest.approx((3.5 - half, 3.5 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(3.5 / found.error, found.freedom))
    assert found.spread is None
    for few, many in ((array(1, 2, 3), array(1, 2, 3, 4)), (array(1, 1, 1, 1), array(2, 2, 2, 2, 2))):
        assert (welch(few, many).mean, welch(few, many).p) == (many.mean() - few.mean(), None)


def test_arms_without_the_same_seeds_count_their_own():
    curves = {"a": {"score": np.ones((2, 3))}, "b": {"score": np.ones((5, 3))}}
    found = Results(task="t", seeds=(0, 1, 2, 3, 4), own_seeds={"a": (0, 1), "b": (0, 1, 2, 3, 4)}, curves=curves)
    assert (found.paired, found.counts, found.fewest) == (False, {"a": 2, "b": 5}, 2)
    assert (found.how_many, found.counted_seeds, found.seeds_of("a")) == ("2 to 5", "2 to 5 seeds", (0, 1))
    one = Results(task="t", seeds=(7,), curves=curves)
    assert (one.paired, one.how_many, one.counted_seeds) == (True, "1", "1 seed")


def test_several_arms_are_corrected_together():
    zero = np.zeros(6)
    clear = array(1, 1.1, 0.9, 1, 1.2, 0.8)
    found = differences_to(zero, {"a": clear, "b": 1 + (clear - 1) / 2, "c": array(1, -1, 1, -1, 1, -1)})
    assert found["b"].p < found["a"].p
    assert found["b"].p_holm == pytest.approx(3 * found["b"].p)
    assert found["a"].p_holm == pytest.approx(2 * found["a"].p)
    assert found["c"].p_holm == pytest.approx(1)


def test_bootstrap_interval_is_repeatable():
    values = np.random.default_rng(3).normal(size=7)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_rank_correlation_sees_order_only_and_is_undefined_for_constants():
    assert rank_correlation(array(1, 2, 30), array(-5, 0, 0.1)) == pytest.approx(1)
    assert rank_correlation(array(3, 2, 1), array(1, 2, 3)) == pytest.approx(-1)
    # ties get mean ranks: (1.5, 1.5, 3) against (1, 2, 3): ρ = 1.5 / sqrt(1.5 · 2)
    assert rank_correlation(array(0, 0, 1), array(1, 2, 3)) == pytest.approx(1.5 / np.sqrt(3))
    assert np.isnan(rank_correlation(array(1, 1, 1), array(1, 2, 3)))
    assert np.isnan(rank_correlation(array(1), array(2)))


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [((0, 1), (2, 3), False), ((0, 2), (1, 3), True), ((0, 9), (4, 5), True), ((0, 1), (1, 2), True)],
)
def test_overlap_is_symmetric(one, other, meet):
    first, second = (Summary(mean=0.0, low=low, high=high, kind="range") for low, high in (one, other))
    assert first.overlaps(second) is second.overlaps(first) is meet
