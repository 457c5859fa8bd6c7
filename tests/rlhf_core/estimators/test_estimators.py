"""Every estimator by hand, and the identities that tie them together."""

import pytest
import torch
from generated import tries
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.estimators.baselines import greedy_baseline_advantages, length_weighted_advantages
from rlhf_core.estimators.group_relative import group_centred_advantages, group_normalised_advantages
from rlhf_core.estimators.leave_one_out import leave_one_out_advantages, leave_one_out_to_go
from rlhf_core.estimators.length_adaptive import length_adaptive_lam
from rlhf_core.estimators.outcome_and_process import outcome_and_process_advantages
from rlhf_core.returns import discounted_returns

NAN = float("nan")
# two prompts; totals 3, 5 | 2, -6, 1
REWARDS = torch.tensor([[1.0, 2, NAN], [0, 1, 4], [2, NAN, NAN], [-7, 1, NAN], [0, 0, 1]], dtype=torch.float64)
MASK = ~REWARDS.isnan()
GROUPS = torch.tensor([0, 0, 1, 1, 1])
OF_GROUPS = [
    leave_one_out_advantages,
    lambda *inputs: leave_one_out_to_go(*inputs, gamma=1.0),
    group_centred_advantages,
    group_normalised_advantages,
    length_weighted_advantages,
    lambda rewards, mask, groups: outcome_and_process_advantages(rewards[:, 0], rewards, mask, groups, gamma=1.0),
]


def on_tokens(*numbers):
    return torch.where(MASK, torch.tensor(numbers, dtype=torch.float64)[:, None], 0)


def test_leave_one_out_to_go_by_hand():
    # to go: 3 2 . | 5 5 4 | 2 . . | -6 1 . | 1 1 1; a response that has ended counts as 0
    expected = [[3 - 5, 2 - 5, 0], [5 - 3, 5 - 2, 4 - 0], [2 + 2.5, 0, 0], [-6 - 1.5, 1 - 0.5, 0], [1 + 2, 1 - 0.5, 1]]
    found = leave_one_out_to_go(REWARDS, MASK, GROUPS, gamma=1.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_leave_one_out_to_go_discounts():
    rewards, mask = torch.tensor([[1.0, 2], [0, 4]]), torch.ones(2, 2, dtype=torch.bool)
    found = leave_one_out_to_go(rewards, mask, torch.tensor([0, 0]), gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([[2.0 - 2, 2 - 4], [2 - 2, 4.0 - 2]]))


def test_group_centred_by_hand():
    torch.testing.assert_close(group_centred_advantages(REWARDS, MASK, GROUPS), on_tokens(-1, 1, 3, -5, 2))


def test_group_normalised_by_hand():
    # unbiased deviations: sqrt(2), and sqrt((9 + 25 + 4) / 2) = sqrt(19)
    found = group_normalised_advantages(REWARDS, MASK, GROUPS)
    expected = on_tokens(*(-1 / 2**0.5, 1 / 2**0.5), *(x / 19**0.5 for x in (3, -5, 2)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_equal_totals_are_0_whatever_the_deviation():
    rewards, mask = torch.tensor([[1.0, 2], [3, 0]]), torch.ones(2, 2, dtype=torch.bool)
    assert not group_normalised_advantages(rewards, mask, torch.tensor([0, 0])).any()


def test_length_weighted_by_hand():
    # baselines (2*3 + 3*5) / 5 = 4.2 and (1*2 - 2*6 + 3*1) / 6 = -7/6
    expected = on_tokens(3 - 4.2, 5 - 4.2, 2 + 7 / 6, -6 + 7 / 6, 1 + 7 / 6)
    torch.testing.assert_close(length_weighted_advantages(REWARDS, MASK, GROUPS), expected)


def test_greedy_baseline_by_hand():
    found = greedy_baseline_advantages(REWARDS, MASK, torch.tensor([1.0, 1, 0, 0, 2], dtype=torch.float64))
    expected = [[2.0, 1, 0], [4, 4, 3], [2, 0, 0], [-6, 1, 0], [-1, -1, -1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_outcome_and_process_by_hand():
    outcomes = torch.tensor([1.0, 0, 3, 0, 0], dtype=torch.float64)
    # per token 1.5, 5/3 | 2, -3, 1/3; baselines of the others 5/3, 1.5 | -4/3, 7/6, -.5
    b = [5 / 3, 1.5, -4 / 3, 7 / 6, -0.5]
    process = [
        [3 - 2 * b[0], 2 - b[0], 0],
        [5 - 3 * b[1], 5 - 2 * b[1], 4 - b[1]],
        [2 - b[2], 0, 0],
        [-6 - 2 * b[3], 1 - b[3], 0],
        [1 - 3 * b[4], 1 - 2 * b[4], 1 - b[4]],
    ]
    expected = torch.tensor(process, dtype=torch.float64) + on_tokens(1, -1, 3, -1.5, -1.5)
    found = outcome_and_process_advantages(outcomes, REWARDS, MASK, GROUPS, gamma=1.0)
    torch.testing.assert_close(found, expected)


def test_length_adaptive_by_hand():
    mask = torch.arange(100) < torch.tensor([10, 40, 100])[:, None]
    torch.testing.assert_close(
        length_adaptive_lam(mask, share=0.05), torch.tensor([0.0, 0.5, 0.8], dtype=torch.float64)
    )


@st.composite
def batches(draw, ragged=True):
    sizes = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    groups = torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)])
    groups = groups[torch.tensor(draw(st.permutations(range(len(groups)))))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.randint(1, 7, (len(groups),), generator=generator) if ragged else torch.full((len(groups),), 6)
    mask = torch.arange(6) < lengths[:, None]
    rewards = torch.where(mask, torch.randn(mask.shape, generator=generator, dtype=torch.float64) * 3, 0)
    return rewards, mask, groups


def on_the_last(rewards, mask):
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.where(last, rewards.sum(1, keepdim=True), 0)


@tries(30)
@given(batches(ragged=False))
def test_with_rewards_on_the_last_token_and_one_length_to_go_is_rloo_to_the_bit(batch):
    rewards, mask, groups = batch
    sparse = on_the_last(rewards, mask)
    found = leave_one_out_to_go(sparse, mask, groups, gamma=1.0)
    assert torch.equal(found, leave_one_out_advantages(sparse, mask, groups))


@tries(30)
@given(batches())
def test_to_go_is_a_plain_mean_of_the_others_at_each_position(batch):
    rewards, mask, groups = batch
    to_go = discounted_returns(rewards, mask, gamma=1.0)
    found = leave_one_out_to_go(rewards, mask, groups, gamma=1.0)
    for i, t in mask.nonzero().tolist():
        others = [float(to_go[j, t]) for j in range(len(groups)) if j != i and groups[j] == groups[i]]
        assert float(found[i, t]) == pytest.approx(float(to_go[i, t]) - sum(others) / len(others), abs=1e-9)


@tries(30)
@given(batches())
def test_the_baseline_of_a_row_knows_nothing_of_that_row(batch):
    """What keeps the gradient unbiased: changing row i's rewards moves its advantage by as much, at every token."""
    rewards, mask, groups = batch
    changed = rewards.clone()
    changed[0] = torch.where(mask[0], rewards[0] + torch.arange(6), 0)
    own = discounted_returns(changed - rewards, mask, gamma=1.0)[0]
    before, after = (leave_one_out_to_go(x, mask, groups, gamma=1.0)[0] for x in (rewards, changed))
    torch.testing.assert_close(after - before, own)


@tries(30)
@given(batches())
def test_centring_is_a_share_of_leaving_one_out(batch):
    rewards, mask, groups = batch
    sizes = (groups[:, None] == groups[None, :]).sum(1)
    share = ((sizes - 1) / sizes.double())[:, None]
    expected = leave_one_out_advantages(rewards, mask, groups) * share
    torch.testing.assert_close(group_centred_advantages(rewards, mask, groups), expected)


@tries(30)
@given(batches(ragged=False))
def test_with_one_length_weighting_by_length_is_centring(batch):
    expected = group_centred_advantages(*batch)
    torch.testing.assert_close(length_weighted_advantages(*batch), expected)


@tries(30)
@given(batches())
def test_padding_and_other_groups_change_nothing(batch):
    rewards, mask, groups = batch
    dirty = torch.where(mask, rewards, NAN)
    for estimate in OF_GROUPS:
        found = estimate(rewards, mask, groups)
        assert not found[~mask].any()
        torch.testing.assert_close(estimate(dirty, mask, groups), found)
        rows = groups == groups[0]
        torch.testing.assert_close(estimate(rewards[rows], mask[rows], groups[rows]), found[rows])


@pytest.mark.parametrize("estimate", OF_GROUPS)
def test_a_response_without_another_to_its_prompt_is_refused(estimate):
    with pytest.raises(ValueError, match="row 2 is the only response of group 7"):
        estimate(torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool), torch.tensor([0, 0, 7]))
