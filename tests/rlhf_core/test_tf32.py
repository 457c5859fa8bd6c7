"""TF32 without a card, and what a run notes of it; with one: tests/project/test_card.py."""

import warnings

import pytest
import torch

from rlhf_core import TokenReward, allow_tf32
from rlhf_core.checks import log_ratio_bounds
from rlhf_core.run import identity
from rlhf_core.tf32 import multiplies_in_tf32

REWARD = TokenReward(lambda prompts, responses: [0.0] * len(responses))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_nothing_is_switched():
    before = torch.backends.cuda.matmul.fp32_precision
    assert not allow_tf32()
    assert not multiplies_in_tf32()
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert log_ratio_bounds(torch.float32) == (1e-4, 1e-4)


@pytest.mark.parametrize(("capability", "allowed"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards_before_ampere_have_none(capability, allowed, monkeypatch):
    class Switch:
        fp32_precision = "none"

    monkeypatch.setattr(torch.backends.cuda, "matmul", Switch())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: capability)
    assert allow_tf32() == multiplies_in_tf32() == allowed
    assert log_ratio_bounds(torch.float32) == ((1.0, 0.1) if allowed else (1e-4, 1e-4))


def test_a_run_that_goes_on_without_the_tf32_it_began_with_warns(monkeypatch):
    noted = identity.made_with(REWARD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identity.warn_of_changes(noted, identity.made_with(REWARD), "runs/a")
    monkeypatch.setattr(identity, "multiplies_in_tf32", lambda: True)
    with pytest.warns(RuntimeWarning, match="float32 products was None and is 'TF32'"):
        identity.warn_of_changes(noted, identity.made_with(REWARD), "runs/a")
