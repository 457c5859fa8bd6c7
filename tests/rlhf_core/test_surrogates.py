"""The policy's objectives by hand, against the published packages (loss and gradient), and their invariances."""

import math

import pytest
import torch
from published_estimators import cases, needs_golden_vectors

from rlhf_core.losses import policy_loss
from rlhf_core.surrogates import LOSS_MEANS, SURROGATES, Clip

MEANS = {"token-mean": "token", "seq-mean-token-mean": "response", "seq-mean-token-sum-norm": "fixed"}
SURROGATE_OF = {
    "compute_policy_loss_vanilla": "ppo",
    "compute_policy_loss_gspo": "gspo",
    "compute_policy_loss_cispo": "cispo",
}


def logs(*ratios):
    return torch.tensor([[math.log(ratio) for ratio in ratios]], dtype=torch.float64, requires_grad=True)


def made(name, new, advantages, **settings):
    clip = {"clip_range": 0.2, "clip_range_high": 0.3, "dual_clip": None, **settings}
    mask = torch.ones(new.shape, dtype=torch.bool)
    return policy_loss(new, torch.zeros_like(new), torch.tensor([advantages]).double(), mask, surrogate=name, **clip)


def test_clip_higher_by_hand():
    new = logs(1.25, 1.5, 0.7)
    loss, _ = made("ppo", new, [1.0, 1, -1])
    assert loss.item() == pytest.approx((-1.25 - 1.3 + 0.8) / 3)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([[-1.25 / 3, 0, 0]], dtype=torch.float64))


def test_dual_clip_by_hand():
    new = logs(4.0, 2.0, 4.0)
    loss, _ = made("ppo", new, [-1.0, -1, 1], dual_clip=3.0)
    assert loss.item() == pytest.approx((3 + 2 - 1.3) / 3)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([[0, 2 / 3, 0]], dtype=torch.float64))


def test_gspo_by_hand():
    """One ratio, sqrt(1.21) = 1.1, for both tokens; each token's gradient is that of its own advantage."""
    new = logs(1.21, 1.0)
    loss, stats = made("gspo", new, [1.0, 3])
    assert loss.item() == pytest.approx(-1.1 * 2)
    assert float(stats["ratio_max"]) == pytest.approx(1.1)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([[-1.1 / 2, -3.3 / 2]], dtype=torch.float64))


def test_cispo_by_hand():
    new = logs(2.0, 1.1)
    loss, stats = made("cispo", new, [1.0, -1])
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([[-1.3 / 2, 1.1 / 2]], dtype=torch.float64))
    assert float(stats["clip_fraction"]) == 0.5


def test_means_by_hand():
    losses = torch.tensor([[1.0, 2, 3], [5, math.nan, math.nan]])
    mask = ~losses.isnan()
    found = {name: float(mean(losses, mask, 10)) for name, mean in LOSS_MEANS.items()}
    assert found == pytest.approx({"token": 11 / 4, "response": (2 + 5) / 2, "fixed": (0.6 + 0.5) / 2})


def ordinary(found):
    """No row without tokens, and no log ratio beyond verl's own limit."""
    return found["adv_kind"] != "extreme" and all(map(any, found["response_mask"]))


def published(*functions):
    """Cases whose mean and clipping are ours; without sampling weights or a global batch, which belong to others."""
    unlike = ("rollout_is_weights", "dp_size")
    return [
        case
        for case in cases("verl", "policy_loss", functions=functions, takes=ordinary)
        if case.values[0]["params"]["loss_agg_mode"] in MEANS and not any(map(case.values[0]["params"].get, unlike))
    ]


@needs_golden_vectors
@pytest.mark.parametrize(("case", "found"), published(*SURROGATE_OF))
def test_verl(case, found):
    mask = torch.tensor(found["response_mask"]).bool()
    read = {name: torch.tensor(found[name], dtype=torch.float64) for name in ("log_prob", "old_log_prob", "advantages")}
    new, settings = read["log_prob"].requires_grad_(), case["params"]
    loss, _ = policy_loss(
        new,
        read["old_log_prob"],
        read["advantages"],
        mask,
        clip_range=settings["clip_ratio_low"],
        clip_range_high=settings["clip_ratio_high"],
        dual_clip=settings.get("clip_ratio_c"),
        surrogate=SURROGATE_OF[case["function"].rpartition(".")[2]],
        loss_mean=MEANS[settings["loss_agg_mode"]],
        longest=mask.shape[1],
    )
    loss.backward()
    theirs = torch.tensor(case["outputs"]["grad_log_prob"], dtype=torch.float64)
    torch.testing.assert_close(torch.where(mask, new.grad, 0), torch.where(mask, theirs, 0), rtol=1e-6, atol=1e-12)
    if case["function"].endswith("cispo"):  # theirs is the same up to what has no gradient
        return
    assert loss.item() == pytest.approx(case["outputs"]["loss"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_at_the_old_policy_all_have_the_policy_gradient(name):
    new = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, -2, 3], [4, 9, 9]], dtype=torch.float64)
    SURROGATES[name](torch.where(mask, new, 0), advantages, mask, Clip(low=0.2, high=0.2)).losses[mask].sum().backward()
    assert torch.equal(new.grad, torch.where(mask, -advantages, 0))


@pytest.mark.parametrize("name", SURROGATES)
def test_padding_of_any_kind_changes_nothing(name):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    generator = torch.Generator().manual_seed(0)
    clean = [torch.where(mask, torch.randn(2, 3, generator=generator), 0) for _ in range(3)]
    dirty = [torch.where(mask, x, math.nan) for x in clean]
    losses, grads = [], []
    for leaf, *others in (clean, dirty):
        new = leaf.clone().requires_grad_()
        loss, _ = policy_loss(new, *others, mask, clip_range=0.2, surrogate=name, loss_mean="response")
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.nan_to_num(new.grad))
    assert losses[0] == losses[1]
    assert torch.equal(*grads)
