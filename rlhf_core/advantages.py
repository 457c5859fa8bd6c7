"""From rewards to experience: what ``PPOConfig.advantages`` names. A further estimator is one function and one line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.config import PPOConfig
from rlhf_core.prompts import prompt_groups
from rlhf_core.returns import generalized_advantages
from rlhf_core.types import Experience, Rollout

Estimate = Callable[[Tensor, Rollout, PPOConfig], Experience]

OF_A_CRITIC = frozenset(
    {
        *("value_loss", "value_loss_paper", "value_clip_fraction", "return_mean", "return_variance"),
        *("return_variance_within_position", "explained_variance", "explained_variance_over_position"),
    }
)
"""Figures that say something about a critic only."""


def gae(rewards: Float[Tensor, "batch response"], rollout: Rollout, config: PPOConfig) -> Experience:
    """Generalized advantage estimates; returns are advantages plus values, the λ-returns."""
    mask = rollout.sequences.response_mask
    advantages = generalized_advantages(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
    return _experience(rollout, advantages, advantages + rollout.values)


def rloo(rewards: Float[Tensor, "batch response"], rollout: Rollout, config: PPOConfig) -> Experience:
    """Leave-one-out advantages among the responses to each prompt; returns are the values themselves, as there is
    nothing a critic should become. γ and λ play no part.

    Raises:
        ValueError: rows that are not ``config.responses_per_prompt`` responses to each prompt, one after the other.
    """
    groups = prompt_groups(rollout.sequences, config.responses_per_prompt)
    advantages = leave_one_out_advantages(rewards, rollout.sequences.response_mask, groups)
    return _experience(rollout, advantages, rollout.values)


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """``estimate`` makes experience of rewards (score units, KL penalty subtracted); ``critic``: whether its returns
    are what the values are trained towards."""

    estimate: Estimate
    critic: bool

    def update_settings(self, config: PPOConfig) -> PPOConfig:
        """``config`` as the update is to follow it: without a critic the value loss has weight 0."""
        return config if self.critic else replace(config, value_coef=0.0)

    def defined(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures that mean something: without a critic, none of its own."""
        return {name: value for name, value in figures.items() if self.critic or name not in OF_A_CRITIC}


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {"gae": Estimator(estimate=gae, critic=True), "rloo": Estimator(estimate=rloo, critic=False)}
)
"""By the names that ``PPOConfig.advantages`` takes."""


def _experience(rollout: Rollout, advantages: Tensor, returns: Tensor) -> Experience:
    return Experience(
        sequences=rollout.sequences,
        logprobs=rollout.logprobs,
        values=rollout.values,
        advantages=advantages,
        returns=returns,
    )


def leave_one_out_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """RLOO: A_i = R_i − 1/(k − 1) · Σ_{j ≠ i} R_j over the k responses of one group, R_i = Σ_t r_it, in score units.

    r are the ``rewards`` of the tokens that ``mask`` selects. The same on every token of a response, 0 on padding, not
    whitened; it adds up to 0 over a group. ``groups`` numbers the prompt of each row; groups may differ in size. Only
    totals count: where credit is placed within a response changes nothing, nor does a constant that all responses to a
    prompt share, such as the one true shaping adds. Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline
    for free!"; Ahmadian et al. 2024, "Back to basics", arXiv 2402.14740, eq. 8.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    totals = torch.where(mask, rewards, 0).sum(1)
    others = (groups[:, None] == groups[None, :]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    counts = others.sum(1)
    if bool((counts == 0).any()):
        row = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"leave_one_out_advantages: row {row} is the only response of group {int(groups[row])}, so there is no "
            "other to compare it with; give two responses a prompt or more (PPOConfig.responses_per_prompt)"
        )
    # differences first: a constant that all totals share then leaves no rounding behind
    gaps = totals[:, None] - totals[None, :]
    advantages = torch.where(others, gaps, 0).sum(1) / counts
    return torch.where(mask, advantages[:, None], 0)
