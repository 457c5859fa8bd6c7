"""Rewards per token for other trainers: ragged lists in and out, the sums, and what is refused."""

import inspect
import math

import pytest
import torch
from judges import judge_of

from redistributors import (
    REDISTRIBUTORS,
    DecoderAttention,
    LeaveOneOut,
    OwnRewards,
    PotentialProjection,
    RewardAttention,
    Sparse,
    Uniform,
)
from rlhf_core import PerTokenReward, TokenReward, token_rewards
from rlhf_core.reward_per_token import require_policy_free
from rlhf_core.types import Learns

PROMPTS, RESPONSES = [[4, 5], [6], [2, 3, 4]], [[3, 7, 2], [9], [5, 6, 7, 8]]


def total(prompts, responses):
    return [float(sum(row)) for row in responses]


SUMS = TokenReward(total)


class Reads(Sparse):
    """A method of somebody who overlooked that no policy takes part."""

    def __call__(self, rollout):
        return rollout.values.detach()


def policy_free():
    return [
        name
        for name, make in REDISTRIBUTORS.items()
        if all(need.source == "reward" for need in make().needs) and not isinstance(make(), Learns)
    ]


def test_lists_by_hand():
    assert token_rewards(SUMS, Sparse(), PROMPTS, RESPONSES) == [[0, 0, 12], [9], [0, 0, 0, 26]]
    assert token_rewards(SUMS, Uniform(), PROMPTS, RESPONSES) == [[4, 4, 4], [9], [6.5, 6.5, 6.5, 6.5]]
    assert token_rewards(SUMS, LeaveOneOut(), PROMPTS, RESPONSES) == [[3, 7, 2], [9], [5, 6, 7, 8]]


def test_a_rewards_own_numbers_pass_through():
    own = PerTokenReward(lambda prompts, responses: [[float(token) for token in row] for row in responses])
    assert token_rewards(own, OwnRewards(), PROMPTS, RESPONSES) == [[3, 7, 2], [9], [5, 6, 7, 8]]


@pytest.mark.parametrize("name", policy_free())
def test_sums_equal_the_models_scores_and_rows_do_not_depend_on_each_other(name):
    judge, method = judge_of("gpt2"), REDISTRIBUTORS[name]()
    together = token_rewards(judge, method, PROMPTS, RESPONSES)
    scores = [sum(row) for row in token_rewards(judge, Sparse(), PROMPTS, RESPONSES)]
    assert [len(row) for row in together] == [3, 1, 4]
    if method.conserving:
        assert [sum(row) for row in together] == pytest.approx(scores, abs=1e-4)
    (alone,) = token_rewards(judge, method, PROMPTS[1:2], RESPONSES[1:2])
    assert together[1] == pytest.approx(alone, abs=1e-4)


def test_dense_credit_reaches_early_tokens():
    first, _, _ = token_rewards(judge_of("gpt2"), RewardAttention(), PROMPTS, RESPONSES)
    assert all(first)


def test_most_of_the_registry_needs_no_policy():
    assert {"sparse", "uniform", "abc", "gradient", "integrated-gradients", "leave-one-out", "shapley"} <= set(
        policy_free()
    )


@pytest.mark.parametrize(
    ("reward", "method", "said"),
    [
        (SUMS, DecoderAttention(), r"DecoderAttention.* needs .* of the policy, and no policy takes part here"),
        (SUMS, PotentialProjection(), "PotentialProjection.* (learns while|needs .* of the policy)"),
        (SUMS, RewardAttention(), "RewardAttention.* needs .*, which TokenReward cannot give: a callable"),
    ],
    ids=["policy", "learns", "evidence"],
)
def test_methods_that_cannot_be_served_are_refused_by_name(reward, method, said):
    with pytest.raises(ValueError, match=f"token_rewards: {said}"):
        token_rewards(reward, method, PROMPTS, RESPONSES)


@pytest.mark.parametrize("name", sorted(set(REDISTRIBUTORS) - set(policy_free())))
def test_every_other_registered_method_is_refused(name):
    with pytest.raises(ValueError, match="token_rewards: .* (policy|reference|learns)"):
        token_rewards(judge_of("gpt2"), REDISTRIBUTORS[name](), PROMPTS, RESPONSES)


@pytest.mark.parametrize("given", ["abc", Sparse])
def test_a_class_or_a_name_is_no_method(given):
    unchecked = inspect.unwrap(require_policy_free)  # as users meet it, without the type checker of these tests
    with pytest.raises(TypeError, match="a method itself, such as RewardAttention"):
        unchecked(SUMS, given)


def test_what_a_policy_would_know_is_never_read_unnoticed():
    with pytest.raises(FloatingPointError, match="not finite, first in row 0"):
        token_rewards(SUMS, Reads(), PROMPTS, RESPONSES)


def test_rows_and_ids_are_checked():
    with pytest.raises(ValueError, match="row 1 is empty"):
        token_rewards(SUMS, Sparse(), PROMPTS, [[1], [], [2]])
    with pytest.raises(ValueError, match="row 2 holds token id 99, but ClassifierReward reads only 0 to 32"):
        token_rewards(judge_of("gpt2"), Sparse(), PROMPTS, [[1], [2], [3, 99]])


def test_scores_are_checked():
    with pytest.raises(FloatingPointError, match="the score of row 1 is nan"):
        token_rewards(TokenReward(lambda p, r: [1.0, math.nan, 2.0]), Sparse(), PROMPTS, RESPONSES)

    class Short(TokenReward):
        def score(self, sequences, needs):
            scored = TokenReward.score(self, sequences, needs)
            return type(scored)(scores=scored.scores[:1], evidence={})

    with pytest.raises(ValueError, match=r"Short.score returned scores of shape \(1,\) for 3 responses"):
        token_rewards(Short(total), Sparse(), PROMPTS, RESPONSES)


def test_no_gradient_is_kept():
    weight = torch.nn.Parameter(torch.ones(()))
    kept = TokenReward(lambda p, r: [weight * sum(row) for row in r])
    assert token_rewards(kept, Sparse(), PROMPTS, RESPONSES)[1] == [9]
