"""Advantage estimators under credit, by enumeration: the expected policy gradient of every group of responses, and its
variance.

A group is ``SIZE`` responses to the one prompt, drawn independently; a small world has few enough groups to add up all.
Advantages are those of the engine's own estimators, before any whitening over a batch, which would mix groups.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.worlds.declared_properties import cosine, reward_to_go, token_scores
from benchmarks.worlds.tabular import World, probabilities, token_logprobs
from redistributors.trial_rollouts import part_of
from rlhf_core.advantages import ESTIMATORS
from rlhf_core.config import Advantages, PPOConfig
from rlhf_core.types import Redistributor

SIZE = 2
"""Responses of a group."""
CONFIG = PPOConfig(responses_per_prompt=SIZE, rollout_batch_size=SIZE, minibatch_size=SIZE, lam=0.95)


@dataclass(frozen=True, kw_only=True)
class GroupGradient:
    """The gradient that one group follows, against the true one of the expected score."""

    cosine: float
    """Of the expectation with the true gradient."""
    size: float
    """The expectation's component along the true gradient, in its length: 1 is unbiased, with a cosine of 1."""
    variance: float
    """Expected squared distance from the expectation, over the expectation's squared length."""


def group_gradient(world: World, name: Advantages, make: Callable[[], Redistributor]) -> GroupGradient:
    """What the estimator of that name makes of the method's credit, over all groups.

    GAE has the exact critic of the credit: the expected reward-to-go of every state. Raises as :func:`token_scores`.
    """
    credit = token_scores(world, make())
    values = world.state_means(reward_to_go(world, credit))
    every = list(product(range(len(credit)), repeat=SIZE))
    rows = [row for group in every for row in group]
    rollout = part_of(replace(world.rollout({}), values=values), rows, credit.shape[1])
    config = replace(CONFIG, advantages=name)
    advantages = ESTIMATORS[name].estimate(credit[rows], rollout, config).advantages
    slopes = token_slopes(world)[rows]
    of_groups = torch.einsum("rt,rtp->rp", advantages, slopes).reshape(len(every), SIZE, -1).mean(1)
    weights = probabilities(world, world.logits)[rows].reshape(len(every), SIZE).prod(1)
    expected = weights @ of_groups
    spread = weights @ (of_groups - expected).square().sum(1)
    true = world.true_gradient(world.scores).flatten()
    return GroupGradient(
        cosine=cosine(expected, true),
        size=float(expected @ true / true.square().sum()),
        variance=float(spread / expected.square().sum()),
    )


def token_slopes(world: World) -> Float[Tensor, "batch response parameter"]:
    """∇ log π(y_t | y_<t) by the table's logits, for every token of every response; 0 on padding."""
    logits = world.logits.clone().requires_grad_()
    logprobs = token_logprobs(world, logits)
    slopes = torch.zeros(*logprobs.shape, logits.numel(), dtype=logits.dtype)
    for row, token in world.sequences.response_mask.nonzero().tolist():
        (slope,) = torch.autograd.grad(logprobs[row, token], logits, retain_graph=True)
        slopes[row, token] = slope.flatten()
    return slopes
