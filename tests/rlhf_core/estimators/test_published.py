"""Our estimators against those of the published packages, on every batch that both can take."""

import pytest
import torch
from published_estimators import cases, needs_golden_vectors

from rlhf_core.estimators.baselines import greedy_baseline_advantages, length_weighted_advantages
from rlhf_core.estimators.group_relative import group_centred_advantages, group_normalised_advantages
from rlhf_core.estimators.leave_one_out import leave_one_out_advantages
from rlhf_core.masking import masked_whiten
from rlhf_core.returns import discounted_returns, generalized_advantages

pytestmark = needs_golden_vectors


class Batch:
    """A published batch as our tensors."""

    def __init__(self, found):
        self.mask = torch.tensor(found["response_mask"]).bool()
        self.rewards = torch.tensor(found["token_level_rewards"], dtype=torch.float64)
        self.values = torch.tensor(found["values"], dtype=torch.float64)
        self.greedy = torch.tensor(found["reward_baselines"], dtype=torch.float64)
        names = sorted({str(name) for name in found["index"]})
        self.groups = torch.tensor([names.index(str(name)) for name in found["index"]])


def right_padded(found):
    """A response without holes, and none without tokens: the only ones there are here."""
    mask = Batch(found).mask
    return bool((mask[:, :-1] >= mask[:, 1:]).all() and mask.any(1).all())


def summed_alike(found):
    """Stacks that add up whole rows count rewards on padding, and we never do."""
    batch = Batch(found)
    return right_padded(found) and not batch.rewards[~batch.mask].any()


def in_groups(found):
    """Every response has another to be compared with."""
    groups = Batch(found).groups
    return summed_alike(found) and bool((groups[:, None] == groups[None, :]).sum(1).min() > 1)


def agrees(case, name, ours, mask, rtol=1e-9):
    theirs = torch.tensor(case["outputs"][name], dtype=torch.float64)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=rtol, atol=1e-12)


GROUP_ESTIMATORS = {
    "compute_rloo_outcome_advantage": leave_one_out_advantages,
    "compute_rloo_vectorized_outcome_advantage": leave_one_out_advantages,
    "compute_opo_outcome_advantage": length_weighted_advantages,
    "compute_reinforce_plus_plus_baseline_outcome_advantage": lambda rewards, mask, groups: masked_whiten(
        group_centred_advantages(rewards, mask, groups), mask
    ),
}


@pytest.mark.parametrize(("case", "found"), cases("verl", "advantage", functions=GROUP_ESTIMATORS, takes=in_groups))
def test_of_groups(case, found):
    batch = Batch(found)
    ours = GROUP_ESTIMATORS[case["function"].rpartition(".")[2]](batch.rewards, batch.mask, batch.groups)
    agrees(case, "advantages", ours, batch.mask, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "found"), cases("verl", "advantage", functions=["compute_grpo_outcome_advantage"], takes=in_groups)
)
def test_grpo(case, found):
    batch = Batch(found)
    by_deviation = case["params"]["norm_adv_by_std_in_grpo"]
    estimate = group_normalised_advantages if by_deviation else group_centred_advantages
    agrees(case, "advantages", estimate(batch.rewards, batch.mask, batch.groups), batch.mask)


@pytest.mark.parametrize(
    ("case", "found"),
    cases("verl", "advantage", functions=["compute_reinforce_plus_plus_outcome_advantage"], takes=right_padded),
)
def test_reinforce_plus_plus(case, found):
    batch = Batch(found)
    returns = discounted_returns(batch.rewards, batch.mask, gamma=case["params"]["gamma"])
    agrees(case, "returns", returns, batch.mask)
    agrees(case, "advantages", masked_whiten(returns, batch.mask), batch.mask, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "found"), cases("verl", "advantage", functions=["compute_remax_outcome_advantage"], takes=summed_alike)
)
def test_remax(case, found):
    batch = Batch(found)
    agrees(case, "advantages", greedy_baseline_advantages(batch.rewards, batch.mask, batch.greedy), batch.mask)


@pytest.mark.parametrize(
    ("case", "found"), cases("verl", "advantage", functions=["compute_gae_advantage_return"], takes=right_padded)
)
def test_gae(case, found):
    batch = Batch(found)
    ours = generalized_advantages(batch.rewards, batch.values, batch.mask, **case["params"])
    agrees(case, "returns", ours + batch.values, batch.mask)
    agrees(case, "advantages", masked_whiten(ours, batch.mask), batch.mask, rtol=1e-6)


@pytest.mark.parametrize(
    ("functions", "takes", "least"),
    [
        (GROUP_ESTIMATORS, in_groups, 20),
        (["compute_grpo_outcome_advantage"], in_groups, 10),
        (["compute_gae_advantage_return"], right_padded, 44),
    ],
)
def test_most_published_batches_are_taken(functions, takes, least):
    assert len(cases("verl", "advantage", functions=functions, takes=takes)) >= least
