"""Accuracies with intervals over prompts, and the rule on surface features they stand beside."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from benchmarks.data.preference_formats import Example, Turn
from benchmarks.data.preference_tokens import TokenisedExample
from benchmarks.data.surface_features import FEATURES
from benchmarks.tasks.preference_baselines import baseline_margins, feature_differences, fit
from benchmarks.tasks.reward_accuracy import by_confidence, clustered_mean, compared, compared_lines


def pair(prompt, chosen, rejected, confidence=None):
    return TokenisedExample(
        key=prompt,
        text=prompt,
        prompt=(1,),
        reward_prompt=(1,),
        responses=((2,) * len(chosen), (2,) * len(rejected)),
        written=Example(
            prompt=(Turn(role="user", content=prompt),), responses=(chosen, rejected), confidence=confidence
        ),
    )


def test_the_interval_over_prompts_by_hand():
    """Of 1, 1, 0, 1, 0 the mean is .6; residuals summed over prompts a, b, c are .8, -.2 and -.6."""
    found = clustered_mean(np.array([1.0, 1.0, 0.0, 1.0, 0.0]), ["a", "a", "c", "b", "b"])
    error = math.sqrt(3 / 2 * (0.8**2 + 0.6**2 + 0.2**2)) / 5
    half = 4.302653 * error  # t with 2 degrees of freedom
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))


def test_one_pair_a_prompt_is_the_ordinary_interval_and_copies_of_a_pair_add_nothing():
    values = np.random.default_rng(0).random(12)
    names = [str(i) for i in range(12)]
    usual = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    once, thrice = clustered_mean(values, names), clustered_mean(np.repeat(values, 3), np.repeat(names, 3).tolist())
    assert (once.low, once.high) == pytest.approx((usual.low, usual.high))
    assert (thrice.low, thrice.high) == pytest.approx((usual.low, usual.high))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """40 prompts of 1 to 4 pairs that all agree within a prompt; intervals over pairs hold it in only 80 % or so."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(400):
        sizes = generator.integers(1, 5, 40)
        right = np.repeat(generator.random(40) < 0.65, sizes).astype(float)
        found = clustered_mean(right, np.repeat(np.arange(40), sizes).astype(str).tolist())
        held += found.low <= 0.65 <= found.high
    assert 0.91 <= held / 400 <= 0.98


@pytest.mark.parametrize(("values", "prompts"), [([1.0, 0.0], "aa"), ([1.0, 1.0], "ab")])
def test_one_prompt_and_values_that_all_agree_have_no_interval(values, prompts):
    found = clustered_mean(np.array(values), list(prompts))
    assert (found.low, found.high) == (None, None)
    assert "no interval" in str(found)


def test_weights_are_those_of_a_search_without_a_gradient():
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(40, 2)) * [1, 100] + [0.5, 0]
    spread = np.sqrt((differences**2).mean(0))

    def loss(weights):
        return np.log1p(np.exp(-differences @ (weights / spread))).sum() + 0.5 * (weights**2).sum()

    sought = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    assert fit(differences) * spread == pytest.approx(sought, abs=1e-4)
    assert fit(-differences) == pytest.approx(-fit(differences), abs=1e-6)  # no intercept
    assert fit(differences * [7, 1])[0] == pytest.approx(fit(differences)[0] / 7, rel=1e-3)  # whatever the unit
    assert (fit(np.zeros((3, 2))) == 0).all()


def test_baselines_find_what_people_go_by_and_learn_from_no_pair_of_the_same_prompt():
    generator = np.random.default_rng(0)

    def text(words):
        return " ".join(generator.choice(["fine", "dull", "long"], words))

    longer = [pair(f"prompt {i}", text(9), text(3)) for i in range(30)]
    margins = baseline_margins(longer)
    assert all((some > 0).all() for some in margins.values())
    # one prompt alone is answered the other way, by many pairs: others teach nothing about it
    odd = [pair("odd", text(3), text(9)) for _ in range(40)]
    both = baseline_margins([*longer, *odd])
    assert (both["length_alone"][30:] < 0).all()
    tidy = [pair(f"prompt {i}", "Fine words.", "Fine words,") for i in range(30)]
    found = baseline_margins(tidy)
    assert (found["surface_features"] > 0).all()
    assert (found["length_alone"] == 0).all()
    assert feature_differences(tidy)[0, list(FEATURES).index("ends with a full stop")] == 1


def test_rules_are_compared_on_the_same_pairs():
    rows = [pair("a", "xx", "y"), pair("a", "xx", "y"), pair("b", "x", "yy"), pair("c", "x", "y")]
    margins = {
        "reward_model": np.array([1.0, 2.0, -1.0, 0.5]),
        "surface_features": np.array([1.0, -1.0, -3.0, 0.0]),
    }
    report = compared(rows, margins)
    assert (report["pairs"], report["prompts"]) == (4, 3)
    assert report["reward_model"]["mean"] == 0.75
    assert report["surface_features"]["mean"] == 0.375  # a tie is half right
    assert report["reward_model_minus_surface_features"]["mean"] == 0.375
    lines = compared_lines("four pairs", report)
    assert lines[0].startswith("accuracy on four pairs, 4 pairs of 3 prompts")
    assert [" ".join(line.split())[:40] for line in lines[1:3]] == [
        "reward model 75.0 % [0.0, 100.0]",
        "surface features 37.5 % [0.0, 99.1]",
    ]
    assert len(lines) == 4
    assert "reward_model_minus_surface_features" not in compared(rows, {"length_alone": np.ones(4)})


def test_accuracy_beside_the_longer_response_and_by_how_sure_people_were():
    rows = [pair("a", "xx", "y", 4), pair("b", "x", "yy", 4), pair("c", "x", "y", 0), pair("d", "x", "yy", 0)]
    found = by_confidence(rows, np.array([1.0, 2.0, 0.0, -1.0]))
    assert found["longer_wins"] == (1 + 0 + 0.5 + 0) / 4
    assert found["accuracy_where_the_shorter_won"] == 0.5
    assert found["by_confidence"]["4"] == {"pairs": 2, "accuracy": 1.0, "longer_wins": 0.5}
    assert found["by_confidence"]["0"] == {"pairs": 2, "accuracy": 0.25, "longer_wins": 0.25}
    assert "by_confidence" not in by_confidence([pair("a", "xx", "y")], np.array([1.0]))
