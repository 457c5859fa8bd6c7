"""The critic: zero at first, of the state before each token, trainable, and restored."""

import pytest
import torch

from models import load_policy
from models.policy.value_head import ValueHead
from models.tiny import save_tiny
from rlhf_core.types import Limits


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), request.param, dropout=0.1)


def rollout(policy):
    bounds = Limits(min_lengths=torch.tensor([4, 0]), max_lengths=torch.tensor([6, 3]))
    return policy.sample([[2, 3, 4], [5]], bounds, torch.rand(2, 6, dtype=torch.float64))


def test_values_and_the_gradient_they_send_into_the_trunk_start_at_zero(folder):
    policy = load_policy(folder)
    policy.evaluate(rollout(policy), frozenset()).values.sum().backward()
    *trunk, weight, bias = policy.parameters()
    assert policy.evaluate(rollout(policy), frozenset()).values.eq(0).all()
    assert all(p.grad is None or p.grad.eq(0).all() for p in trunk)
    assert weight.grad.abs().sum() > 0
    assert bias.grad.abs().sum() > 0


def test_a_value_is_that_of_the_state_before_its_token(folder):
    """By hand from the model's own hidden states, row by row; and a changed token must not change its own value."""
    policy = load_policy(folder)
    *_, weight, bias = policy.parameters()
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(0))
        bias.fill_(0.3)
    s = rollout(policy)
    with torch.no_grad():
        values = policy.evaluate(s, frozenset()).values
        for i, (prompt, response) in enumerate(zip(s.prompts(), s.responses(), strict=True)):
            hidden = policy._lm(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1][0]
            for t in range(len(response)):
                expected = float(hidden[len(prompt) + t - 1] @ weight[0] + bias)
                assert float(values[i, t]) == pytest.approx(expected, abs=1e-5)
        s.response_ids[0, 2] = (s.response_ids[0, 2] + 1) % 32
        changed = policy.evaluate(s, frozenset()).values
    assert torch.equal(changed[0, :3], values[0, :3])
    assert changed[0, 3] != values[0, 3]
    assert values[1, int(s.response_lengths[1]) :].eq(0).all()


def test_it_is_float32_whatever_the_trunk_computes_in():
    assert ValueHead(4)(torch.ones(3, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_saved_and_restored_and_a_wrong_size_is_refused(tmp_path):
    head = ValueHead(4)
    torch.nn.init.normal_(head.linear.weight)
    head.save(str(tmp_path))
    other = ValueHead(4)
    other.restore(str(tmp_path))
    hidden = torch.randn(2, 4)
    assert torch.equal(head(hidden), other(hidden))
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(1, 5\)"):
        ValueHead(5).restore(str(tmp_path))
