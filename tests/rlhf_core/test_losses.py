"""Losses against values computed by hand, and the invariances the update relies on."""

import math

import pytest
import torch

from rlhf_core.losses import policy_loss, value_loss

MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_policy_loss_by_hand():
    """Ratios 1.5 (A 1: clipped at 1.2), 0.5 (A -1: clipped at 0.8), 1.1 (A 2: untouched)."""
    new = torch.tensor([[math.log(1.5), math.log(0.5), 9.0], [math.log(1.1), -9.0, 9.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 7.0], [2.0, 7.0, 7.0]])
    loss, stats = policy_loss(new, torch.zeros(2, 3), advantages, MASK, clip_range=0.2)
    assert loss.item() == pytest.approx((-1.2 + 0.8 - 2.2) / 3)
    assert float(stats["clip_fraction"]) == pytest.approx(2 / 3)
    assert float(stats["ratio"]) == pytest.approx((1.5 + 0.5 + 1.1) / 3)
    assert float(stats["ratio_max"]) == pytest.approx(1.5)
    assert float(stats["log_ratio_max"]) == pytest.approx(math.log(2))
    logs = [math.log(1.5), math.log(0.5), math.log(1.1)]
    assert float(stats["logprob_drop"]) == pytest.approx(-sum(logs) / 3)
    assert float(stats["approx_kl"]) == pytest.approx(sum(x * x for x in logs) / 6)
    loss.backward()
    expected = torch.tensor([[0.0, 0.0, 0.0], [-2.2 / 3, 0.0, 0.0]])  # clipped and padded tokens get no gradient
    torch.testing.assert_close(new.grad, expected)


def test_policy_loss_takes_the_pessimistic_side():
    """A ratio outside the range on the side that already lost keeps its gradient."""
    new = torch.tensor([[math.log(0.5), math.log(1.5)]], requires_grad=True)
    loss, _ = policy_loss(new, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2).bool(), clip_range=0.2)
    assert loss.item() == pytest.approx((-0.5 + 1.5) / 2)
    loss.backward()
    assert torch.all(new.grad != 0)


def test_value_loss_by_hand():
    """Old value 0, range 0.2. Predictions 1 (target 2: the clipped 0.2 is further off, 1.8), 0.1 (target 1: inside)."""
    new = torch.tensor([[1.0, 0.1, 9.0], [-0.5, 9.0, 9.0]])
    returns = torch.tensor([[2.0, 1.0, 5.0], [0.0, 5.0, 5.0]])
    loss, stats = value_loss(new, torch.zeros(2, 3), returns, MASK, clip_range=0.2)
    # -0.5 against target 0: unclipped 0.25 beats clipped 0.04
    assert loss.item() == pytest.approx(0.5 * (1.8**2 + 0.9**2 + 0.25) / 3)
    assert float(stats["value_clip_fraction"]) == pytest.approx(1 / 3)
    assert float(stats["response_loss"]) == pytest.approx(0.5 * ((1.8**2 + 0.9**2) / 2 + 0.25) / 2)


def test_the_largest_ratio_is_that_of_a_token_not_of_padding():
    new = torch.full((2, 3), math.log(0.5))
    _, stats = policy_loss(new, torch.zeros(2, 3), torch.ones(2, 3), MASK, clip_range=0.2)
    assert float(stats["ratio_max"]) == pytest.approx(0.5)


@pytest.mark.parametrize("function", [policy_loss, value_loss])
def test_masked_nan_reaches_neither_loss_nor_gradient(function):
    generator = torch.Generator().manual_seed(0)
    clean = [torch.where(MASK, torch.randn(2, 3, generator=generator), 0) for _ in range(3)]
    clean[0].requires_grad_()
    dirty = [torch.where(MASK, x.detach(), float("nan")) for x in clean]
    dirty[0].requires_grad_()
    losses = [function(*inputs, MASK, clip_range=0.2)[0] for inputs in (clean, dirty)]
    for loss in losses:
        loss.backward()
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(clean[0].grad, torch.nan_to_num(dirty[0].grad))
    assert not dirty[0].grad.isnan().any()
