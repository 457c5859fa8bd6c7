"""Hand tables, identities, and a brute-force double sum on unpadded lists."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.returns import discounted_returns, generalized_advantages, lambda_returns


def table(rows):
    width = max(map(len, rows))
    values = torch.tensor([list(row) + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)
    return values, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def test_hand_computed_table():
    """gamma 0.5, lam 0.5; rewards 1 2 4, values 1 0 2: deltas 0, 3, 2; A_3 = 2, A_2 = 3 + .25*2, A_1 = 0 + .25*3.5."""
    rewards, mask = table([[1.0, 2.0, 4.0], [3.0]])
    values, _ = table([[1.0, 0.0, 2.0], [1.0]])
    advantages = generalized_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.875, 3.5, 2.0], [2.0, 0.0, 0.0]]
    returns = lambda_returns(rewards, values, mask, gamma=0.5, lam=0.5)
    assert returns.tolist() == [[1.875, 3.5, 4.0], [3.0, 0.0, 0.0]]
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]]


def brute_force(rewards, values, gamma, lam):
    """A_t = sum over k of (gamma lam)^k delta_(t+k), written out, O(T^2)."""
    n = len(rewards)
    ahead = [*values[1:], 0.0]
    return [
        sum((gamma * lam) ** (k - t) * (rewards[k] + gamma * ahead[k] - values[k]) for k in range(t, n))
        for t in range(n)
    ]


rows_of_numbers = st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=9), min_size=1, max_size=4)


@settings(deadline=None)
@given(rows_of_numbers, st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_against_brute_force(rows, gamma, lam, seed):
    generator = np.random.default_rng(seed)
    value_rows = [generator.normal(size=len(row)).tolist() for row in rows]
    rewards, mask = table(rows)
    values, _ = table(value_rows)
    garbage = torch.where(mask, 0.0, float("nan"))
    advantages = generalized_advantages(rewards + garbage, values + garbage, mask, gamma=gamma, lam=lam)
    returns = lambda_returns(rewards + garbage, values + garbage, mask, gamma=gamma, lam=lam)
    for i, (row, value_row) in enumerate(zip(rows, value_rows, strict=True)):
        expected = brute_force(row, value_row, gamma, lam)
        np.testing.assert_allclose(advantages[i, : len(row)], expected, atol=1e-9)
        np.testing.assert_allclose(returns[i, : len(row)], np.add(expected, value_row), atol=1e-9)
        assert not advantages[i, len(row) :].any()
        assert not returns[i, len(row) :].any()


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
    draw = [torch.where(mask, torch.randn(3, 7, generator=generator, dtype=torch.float64), 0) for _ in range(2)]
    return *draw, mask


def test_lambda_one_is_reward_to_go_minus_value():
    rewards, values, mask = random_case()
    advantages = generalized_advantages(rewards, values, mask, gamma=0.9, lam=1.0)
    torch.testing.assert_close(advantages, discounted_returns(rewards, mask, gamma=0.9) - values)


def test_lambda_zero_is_the_td_error():
    rewards, values, mask = random_case()
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    expected = torch.where(mask, rewards + 0.9 * following - values, 0)
    torch.testing.assert_close(generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.0), expected)


def test_the_value_after_the_last_token_is_zero_even_for_a_row_that_fills_the_width():
    rewards, mask = table([[0.0, 5.0]])
    values, _ = table([[0.0, 2.0]])
    assert generalized_advantages(rewards, values, mask, gamma=1.0, lam=0.0)[0, 1] == 3.0


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_potential_shaping_leaves_advantages_pathwise_identical(lam):
    """Shaped rewards Phi(s') - Phi(s), Phi(terminal) = 0, with the critic shifted by Phi (gamma 1)."""
    rewards, values, mask = random_case()
    potential = torch.where(mask, torch.randn(3, 7, generator=torch.Generator().manual_seed(5)).double(), 0)
    following = torch.cat([potential[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    shaped = generalized_advantages(rewards + following - potential, values - potential, mask, gamma=1.0, lam=lam)
    torch.testing.assert_close(shaped, generalized_advantages(rewards, values, mask, gamma=1.0, lam=lam))


def test_padding_a_row_changes_nothing():
    rewards, values, mask = random_case()
    wider = [torch.nn.functional.pad(x, (0, 5)) for x in (rewards, values, mask)]
    for function in (generalized_advantages, lambda_returns):
        narrow = function(rewards, values, mask, gamma=0.9, lam=0.7)
        assert torch.equal(function(*wider, gamma=0.9, lam=0.7)[:, :7], narrow)
