"""A method is named as it is typed on the command line, wherever a person reads of it."""

from dataclasses import dataclass

import pytest

from redistributors import (
    REDISTRIBUTORS,
    Attention,
    DecoderAttention,
    EntropyPeaks,
    LogRatio,
    OwnRewards,
    PotentialProjection,
    RewardAttention,
    Segment,
    Sentences,
    Uniform,
)
from rlhf_core.names import method_name


@pytest.mark.parametrize("name", REDISTRIBUTORS)
def test_a_registered_method_is_called_by_its_name(name):
    assert str(REDISTRIBUTORS[name]()) == name


@pytest.mark.parametrize(
    ("method", "typed"),
    [
        (RewardAttention(beta=0.5), "abc(beta=0.5)"),
        (DecoderAttention(rows="last", shift=1), "abc-d2(shift=1)"),
        (
            Segment(inner=Uniform(beta=0.3), boundaries=Sentences()),
            "segment(inner=uniform(beta=0.3), boundaries=Sentences())",
        ),
        (Segment(boundaries=EntropyPeaks(threshold=1.5)), "segment(boundaries=EntropyPeaks(threshold=1.5))"),
        (Segment(place="end"), 'segment(place="end")'),
        (PotentialProjection(inner=DecoderAttention()), "potential-projection(inner=abc-d)"),
        (Attention(layers=(0, 1), heads=1), "attention(layers=[0, 1], heads=1)"),
        (LogRatio(mode="shape", scale=0.2), 'log-ratio(scale=0.2, mode="shape")'),
    ],
)
def test_settings_that_differ_from_those_of_the_name_stand_in_brackets(method, typed):
    assert f"{method}" == method_name(method) == typed


@dataclass(frozen=True)
class Mine(RewardAttention):
    """A method of one's own, which takes after one of ours."""


class Bare:
    """A method of one's own that says nothing of itself."""


@pytest.mark.parametrize(
    ("method", "called"),
    [(Mine(beta=0.5), "Mine(beta=0.5, layer=-1)"), (Bare(), "Bare"), (OwnRewards(), "OwnRewards(residual='last')")],
)
def test_a_method_without_a_name_keeps_that_of_its_class(method, called):
    assert method_name(method) == called
