"""KL estimates, value loss and means against verl's, gradients too."""

import pytest
import torch
from published_estimators import cases, needs_golden_vectors

from rlhf_core.kl import kl_estimate
from rlhf_core.losses import value_loss
from rlhf_core.surrogates import LOSS_MEANS

pytestmark = needs_golden_vectors
KINDS = {"k1": "k1", "kl": "k1", "abs": "abs", "k2": "k2", "mse": "k2", "k3": "k3", "low_var_kl": "k3"}
MEANS = {"token-mean": "token", "seq-mean-token-mean": "response", "seq-mean-token-sum-norm": "fixed"}


def ordinary(found):
    """No row without tokens, and no log ratio beyond verl's own limit."""
    return found["adv_kind"] != "extreme" and all(map(any, found["response_mask"]))


def tensors(found, *names):
    return [torch.tensor(found[name], dtype=torch.float64) for name in names]


def close(ours, theirs):
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-6, atol=1e-12)


KL = [case for case in cases("verl", "kl_penalty", takes=ordinary) if case.values[0]["params"]["kl_penalty"] in KINDS]


@pytest.mark.parametrize(("case", "found"), KL)
def test_kl(case, found):
    new, reference = tensors(found, "log_prob", "ref_log_prob")
    estimate = kl_estimate(new.requires_grad_(), reference, KINDS[case["params"]["kl_penalty"]])
    close(estimate.detach(), case["outputs"]["kl"])
    estimate.sum().backward()
    close(new.grad, case["outputs"]["grad_log_prob"])


VALUE = [
    case
    for case in cases("verl", "value_loss", takes=ordinary)
    if case.values[0]["params"]["loss_agg_mode"] == "token-mean"  # as ours is
]


@pytest.mark.parametrize(("case", "found"), VALUE)
def test_values(case, found):
    mask = torch.tensor(found["response_mask"]).bool()
    new, old, returns = tensors(found, "vpreds", "values", "returns")
    loss, stats = value_loss(new.requires_grad_(), old, returns, mask, clip_range=case["params"]["cliprange_value"])
    loss.backward()
    close(loss.detach(), case["outputs"]["loss"])
    close(new.grad, case["outputs"]["grad_vpreds"])
    assert float(stats["value_clip_fraction"]) == pytest.approx(case["outputs"]["clipfrac"], abs=1e-6)


LOCAL = [
    case
    for case in cases("verl", "agg_loss", takes=ordinary)
    if case.values[0]["params"]["loss_agg_mode"] in MEANS and "dp_size" not in case.values[0]["params"]
]


@pytest.mark.parametrize(("case", "found"), LOCAL)
def test_means(case, found):
    mask = torch.tensor(found["response_mask"]).bool()
    (losses,) = tensors(found, case["params"]["loss_mat"])
    losses.requires_grad_()
    mean = LOSS_MEANS[MEANS[case["params"]["loss_agg_mode"]]](losses, mask, mask.shape[1])
    mean.backward()
    close(mean.detach(), case["outputs"]["loss"])
    close(losses.grad, case["outputs"]["grad_loss_mat"])
