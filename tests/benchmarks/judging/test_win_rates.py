"""Win rates against numbers worked out by hand, scipy's own interval, and judges whose taste is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special, stats

from benchmarks.judging.judges import Scores, probability
from benchmarks.judging.win_rates import (
    JudgedPair,
    RateEstimate,
    decision,
    fitted,
    length_controlled,
    position_bias,
    profiled,
    verdict,
    why_not_controlled,
    wilson,
    win_rates,
)


def array(*values):
    return np.array(values, dtype=float)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (7, 10), (60, 201)])
def test_wilson_interval_is_scipys_where_there_are_no_ties(wins, n):
    found = wilson(array(*[1] * wins, *[0] * (n - wins)))
    known = stats.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.value == wins / n
    assert found.high > found.low


def test_ties_are_half_wins():
    # 1 win, 2 ties, 1 loss: as 2 wins of 4
    assert wilson(array(1, 0.5, 0.5, 0)) == wilson(array(1, 1, 0, 0))
    rates = win_rates(
        [JudgedPair(decisions=d, first_length=9, second_length=9) for d in [(1.0,), (0.5,), (), (0.0,)]], resamples=9
    )
    assert (rates.wins, rates.ties, rates.losses, rates.pairs) == (1, 2, 1, 4)
    # deviations .5 0 0 .5, variance .5 / 3, divided by 4
    assert rates.standard_error == pytest.approx((0.5 / 3 / 4) ** 0.5)
    assert rates.undefined == "4 pairs, fewer than 10"
    assert np.isnan(rates.length_controlled.value)


@pytest.mark.parametrize(
    ("decisions", "outcome"),
    [
        ((1.0,), 1.0),
        ((0.0,), 0.0),
        ((), 0.5),
        ((1.0, 0.0), 1.0),  # the first's text wins in both places
        ((0.0, 1.0), 0.0),
        ((1.0, 1.0), 0.5),  # whatever is shown first wins
        ((0.0, 0.0), 0.5),
        ((0.5, 0.5), 0.5),
        ((1.0, 0.5), 0.5),  # a win and a tie are decided differently
        ((0.5, 1.0), 0.5),
    ],
)
def test_orders_that_disagree_are_a_tie(decisions, outcome):
    assert JudgedPair(decisions=decisions, first_length=1, second_length=2).outcome == outcome


def test_what_a_judge_may_say():
    assert [probability(said) for said in ("first", "tie", "second", np.float32(0.25), 1, True)] == [
        1,
        0.5,
        0,
        0.25,
        1,
        1,
    ]
    assert [probability(Scores(first=a, second=b)) for a, b in [(2, 1), (1, 2), (-3, -3)]] == [1, 0, 0.5]
    assert [decision(p) for p in (0.5, 0.5001, 0.4999, 1.0)] == [0.5, 1, 0, 1]
    nan = float("nan")
    for nonsense in ("A", 1.2, -0.1, nan, None, Scores(first=nan, second=0), Scores(first=float("inf"), second=0)):
        with pytest.raises(ValueError, match="a judge said"):
            probability(nonsense)


def test_position_bias_by_hand():
    decisions = [(1.0, 0.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 1.0), (), (1.0,)]
    found = position_bias([JudgedPair(decisions=d, first_length=1, second_length=1) for d in decisions])
    # verdicts for the one shown first: 1 + 2 + 2 + 0 + 1.5 of 10
    assert (found.pairs, found.first_share, found.disagreements) == (5, 0.65, 4)
    assert (found.always_first, found.always_second) == (2, 1)
    assert np.isnan(position_bias([]).first_share)


def test_regression_on_two_values_adds_half_a_win_and_half_a_loss_to_either():
    x = array(*[1] * 8, *[-1] * 5)
    outcomes = array(*[1] * 6, *[0] * 2, *[1] * 1, *[0] * 4)
    intercept, slope = fitted(outcomes, x)
    assert special.expit(intercept + slope) == pytest.approx(6.5 / 9, abs=1e-5)
    assert special.expit(intercept - slope) == pytest.approx(1.5 / 6, abs=1e-5)


def test_regression_maximises_the_penalised_likelihood():
    generator = np.random.default_rng(0)
    x, outcomes = generator.normal(size=30), generator.choice([0, 0.5, 1], 30)

    def loss(coefficients):
        design = np.stack([np.ones_like(x), x], 1)
        p = 1 / (1 + np.exp(-design @ coefficients))
        information = design.T @ np.diag(p * (1 - p)) @ design
        likelihood = np.sum(np.log(p) * outcomes + np.log(1 - p) * (1 - outcomes))
        return -likelihood - 0.5 * np.linalg.slogdet(information)[1]

    known = optimize.minimize(loss, [0, 0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x
    assert fitted(outcomes, x) == pytest.approx(tuple(known), abs=1e-4)


def test_a_judge_that_only_prefers_longer_texts_is_near_half_at_equal_length():
    generator = np.random.default_rng(1)
    raw, controlled = [], []
    for _ in range(25):
        differences = np.round(generator.normal(140, 200, 800))
        outcomes = (1 + np.sign(differences)) / 2
        raw.append(outcomes.mean())
        controlled.append(special.expit(fitted(outcomes, np.tanh(differences / differences.std(ddof=1)))[0]))
    assert np.mean(raw) == pytest.approx(0.76, abs=0.01)
    assert np.mean(controlled) == pytest.approx(0.5, abs=0.05)
    interval = length_controlled(outcomes, differences, resamples=99)
    assert interval.includes(0.5)
    assert interval.value == pytest.approx(controlled[-1])


def test_length_control_leaves_a_judge_alone_that_does_not_mind_length():
    generator = np.random.default_rng(2)
    differences = generator.normal(140, 200, 4000)
    outcomes = (generator.random(4000) < 0.7).astype(float)
    found = length_controlled(outcomes, differences, resamples=49)
    assert found.value == pytest.approx(0.7, abs=0.04)
    assert 0.6 < found.low < found.value < found.high < 0.8


def test_length_control_recovers_a_known_preference_under_a_bias_for_length():
    generator = np.random.default_rng(3)
    differences = generator.normal(-200, 200, 4000)
    wins = special.expit(special.logit(0.65) + 2 * np.tanh(differences / differences.std(ddof=1)))
    outcomes = (generator.random(4000) < wins).astype(float)
    assert outcomes.mean() < 0.42
    assert length_controlled(outcomes, differences, resamples=9).value == pytest.approx(0.65, abs=0.05)


def test_swapping_the_checkpoints_swaps_the_rate_at_equal_length():
    generator = np.random.default_rng(4)
    differences, outcomes = generator.normal(50, 100, 60), generator.choice([0, 0.5, 1], 60)
    one = length_controlled(outcomes, differences, resamples=49)
    other = length_controlled(1 - outcomes, -differences, resamples=49)
    assert (other.value, other.low, other.high) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low), abs=1e-4)
    assert one == length_controlled(outcomes, differences, resamples=49)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([1, -1], "2 pairs, fewer than 10"),
        ([0] * 12, "differs in length by +0"),
        ([3] * 12, "by +3"),
        ([*range(1, 13)], "responses of the first are longer in every pair"),
        ([-1, -2] * 6, "responses of the second are longer in every pair"),
        ([0, *range(1, 12)], ""),
    ],
)
def test_where_equal_length_cannot_be_spoken_of(differences, said):
    reason = why_not_controlled(array(*differences))
    assert said in reason
    assert bool(reason) is bool(said)
    if reason:
        with pytest.raises(ValueError, match="length_controlled"):
            length_controlled(np.ones(len(differences)), array(*differences), resamples=9)


def rates(raw, controlled, undefined=""):
    pairs = win_rates([JudgedPair(decisions=(1.0,), first_length=1, second_length=1)], resamples=9)
    estimates = [RateEstimate(value=v, low=low, high=high) for v, low, high in (raw, controlled)]
    return replace(pairs, win_rate=estimates[0], length_controlled=estimates[1], undefined=undefined)


@pytest.mark.parametrize(
    ("raw", "controlled", "starts", "ends"),
    [
        (
            (0.7, 0.6, 0.8),
            (0.65, 0.55, 0.75),
            "abc is preferred over sparse in 70.0 % [60.0, 80.0]",
            "65.0 % [55.0, 75.0].",
        ),
        (
            (0.3, 0.2, 0.4),
            (0.35, 0.25, 0.45),
            "sparse is preferred over abc in 70.0 % [60.0, 80.0]",
            "65.0 % [55.0, 75.0].",
        ),
        ((0.55, 0.45, 0.65), (0.52, 0.4, 0.6), "No winner: abc", "no preference is shown."),
        ((0.7, 0.6, 0.8), (0.5, 0.4, 0.6), "abc is preferred", "no preference is shown."),
        ((0.7, 0.6, 0.8), (0.4, 0.3, 0.45), "abc is preferred", "40.0 % [30.0, 45.0], which is for sparse."),
    ],
)
def test_the_sentence_names_a_winner_only_where_the_interval_does(raw, controlled, starts, ends):
    said = verdict(rates(raw, controlled), "abc", "sparse", "me")
    assert said.startswith(starts)
    assert said.endswith(ends)
    assert ("No winner" in said) is (raw[1] <= 0.5 <= raw[2])


def test_the_sentence_says_where_equal_length_means_nothing():
    said = verdict(rates((0.7, 0.6, 0.8), (np.nan,) * 3, "they are all longer"), "abc", "sparse", "me")
    assert said.endswith("at equal length nothing can be said: they are all longer.")


@pytest.mark.parametrize("n", [10, 40, 200])
def test_outcomes_that_all_agree_are_no_certainty_at_equal_length(n):
    differences = np.random.default_rng(5).normal(0, 100, n)
    found = length_controlled(np.ones(n), differences, resamples=49)
    plain = wilson(np.ones(n))
    assert found.low < found.value < found.high < 1
    # what length explains can only widen what is left to say: as wide as without it, or wider
    assert found.high - found.low > 0.8 * (plain.high - plain.low)
    mirrored = length_controlled(np.zeros(n), -differences, resamples=49)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-3)


def test_the_interval_of_the_likelihood_is_found_by_a_search_over_a_grid():
    generator = np.random.default_rng(6)
    x, outcomes = generator.normal(size=20), array(*[1] * 18, 0, 0.5)

    def best(intercept):
        """The penalised log-likelihood at the best of many slopes."""
        slopes = np.linspace(-8, 8, 401)[:, None]
        logits = intercept + slopes * x
        w = special.expit(logits) * special.expit(-logits)
        determinant = w.sum(1) * (w * x**2).sum(1) - (w * x).sum(1) ** 2
        likelihood = special.log_expit(logits) @ outcomes + special.log_expit(-logits) @ (1 - outcomes)
        return (likelihood + 0.5 * np.log(determinant)).max()

    grid = np.linspace(-2, 10, 601)
    heights = np.array([best(at) for at in grid])
    inside = grid[heights > heights.max() - 3.841459 / 2]
    assert profiled(outcomes, x) == pytest.approx((inside.min(), inside.max()), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "slope"), [(0.95, 0.0), (0.98, 1.0)])
def test_intervals_of_few_pairs_at_extreme_rates_hold_the_truth_as_often_as_they_say(share, slope):
    generator = np.random.default_rng(7)
    held = []
    for _ in range(150):
        differences = generator.normal(20, 100, 30)
        standardised = np.tanh(differences / differences.std(ddof=1))
        outcomes = (generator.random(30) < special.expit(special.logit(share) + slope * standardised)).astype(float)
        found = length_controlled(outcomes, differences, resamples=19)
        held.append(found.low <= share <= found.high)
    assert np.mean(held) > 0.92  # 95 % less two standard errors of 150


def test_the_standard_error_of_outcomes_that_all_agree_is_unknown():
    agree = [JudgedPair(decisions=(1.0,), first_length=9, second_length=9)] * 20
    assert np.isnan(win_rates(agree, resamples=9).standard_error)
