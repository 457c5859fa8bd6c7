"""Every surface feature by hand, and the folds that keep a prompt together."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data.hold_out import folds
from benchmarks.data.preference_formats import Turn
from benchmarks.data.surface_features import FEATURES, surface_features

PROMPT = (Turn(role="user", content="The cat, it's 3."), Turn(role="user", content="Why?"))
BY_HAND = {
    " A cat! I'm a cat? ": {  # 17 characters; words a, cat, i'm, a, cat
        "log characters": math.log(18),
        "log words": math.log(6),
        "log sentences": math.log(3),
        "characters per word": 11 / 5,
        "different words per word": 3 / 5,
        "share of words that the prompt has": 2 / 5,
        "share of words in the first person": 1 / 5,
        "share of punctuation": 3 / 17,
        "share of digits": 0,
        "share of capitals": 2 / 17,
        "log question marks": math.log(2),
        "ends with a full stop": 0,
    },
    "It’s 3.5 of 30.": {  # 15 characters; words it’s, 3, 5, of, 30: "3.5" is no end of a sentence
        "log characters": math.log(16),
        "log words": math.log(6),
        "log sentences": math.log(2),
        "characters per word": 10 / 5,
        "different words per word": 1,
        "share of words that the prompt has": 1 / 5,
        "share of words in the first person": 0,
        "share of punctuation": 2 / 15,
        "share of digits": 4 / 15,
        "share of capitals": 1 / 15,
        "log question marks": 0,
        "ends with a full stop": 1,
    },
    "?!": {
        **dict.fromkeys(FEATURES, 0),
        "log characters": math.log(3),
        "log sentences": math.log(2),
        "share of punctuation": 1,
        "log question marks": math.log(2),
    },
}


@pytest.mark.parametrize("response", BY_HAND)
def test_features_by_hand(response):
    found = dict(zip(FEATURES, surface_features(PROMPT, response), strict=True))
    assert found == pytest.approx(BY_HAND[response])


@given(st.text())
def test_any_text_has_finite_features_and_shares_in_0_to_1(response):
    found = dict(zip(FEATURES, surface_features(PROMPT, response), strict=True))
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert all(value <= 1 for name, value in found.items() if name.startswith("share") or name.startswith("diff"))


@given(st.lists(st.sampled_from("abcdefghij"), min_size=10), st.integers(2, 4))
def test_folds_keep_a_text_together_are_of_even_size_and_do_not_depend_on_the_order(texts, number):
    texts += list("abcd")
    found = dict(zip(texts, folds(texts, number), strict=True))
    assert [found[text] for text in texts] == folds(texts, number)
    sizes = [list(found.values()).count(fold) for fold in range(number)]
    assert sum(sizes) == len(found)
    assert max(sizes) - min(sizes) <= 1
    assert dict(zip(reversed(texts), folds(texts[::-1], number), strict=True)) == found


def test_more_folds_than_texts_are_refused():
    with pytest.raises(ValueError, match="3 folds need 3 different texts or more, got 2"):
        folds(["a", "b", "a"], 3)
