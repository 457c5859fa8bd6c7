"""From rewards to experience: what ``PPOConfig.advantages`` names. A further estimator is one function and one line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.config import PPOConfig
from rlhf_core.estimators.baselines import greedy_baseline_advantages, length_weighted_advantages
from rlhf_core.estimators.group_relative import group_centred_advantages, group_normalised_advantages
from rlhf_core.estimators.leave_one_out import leave_one_out_advantages, leave_one_out_to_go
from rlhf_core.estimators.length_adaptive import length_adaptive_lam
from rlhf_core.estimators.outcome_and_process import outcome_and_process_advantages
from rlhf_core.evidence import EvidenceRequest, GreedyScores
from rlhf_core.masking import masked_whiten
from rlhf_core.prompts import prompt_groups
from rlhf_core.returns import discounted_returns, generalized_advantages, lambda_returns
from rlhf_core.types import Experience, Rollout

Rewards = Float[Tensor, "batch response"]
Estimate = Callable[[Tensor, Rollout, PPOConfig], Experience]
OfGroups = Callable[[Tensor, Tensor, Tensor], Tensor]

OF_A_CRITIC = frozenset(
    {
        *("value_loss", "value_loss_paper", "value_clip_fraction", "return_mean", "return_variance"),
        *("return_variance_within_position", "explained_variance", "explained_variance_over_position"),
        "explained_variance_within_position",
    }
)
"""Figures that say something about a critic only."""


def gae(rewards: Rewards, rollout: Rollout, config: PPOConfig) -> Experience:
    """Generalized advantage estimates, and the λ-returns that the critic learns.

    λ of the advantages is ``lam``, or each response's own where ``lam_length_share`` is set (VAPO); λ of the returns is
    ``value_lam``, or the same as that of the advantages where it is None (VC-PPO's decoupled GAE gives 1).
    """
    mask = rollout.sequences.response_mask
    lam = (
        config.lam
        if config.lam_length_share is None
        else length_adaptive_lam(mask, share=config.lam_length_share).to(rewards.dtype)
    )
    advantages = generalized_advantages(rewards, rollout.values, mask, gamma=config.gamma, lam=lam)
    if config.value_lam is None:
        return _experience(rollout, advantages, advantages + rollout.values)
    returns = lambda_returns(rewards, rollout.values, mask, gamma=config.gamma, lam=config.value_lam)
    return _experience(rollout, advantages, returns)


def of_totals(estimate: OfGroups) -> Estimate:
    """An estimator that compares the totals of the responses to each prompt. γ and λ play no part."""

    def estimated(rewards: Rewards, rollout: Rollout, config: PPOConfig) -> Experience:
        mask, groups = rollout.sequences.response_mask, prompt_groups(rollout.sequences, config.responses_per_prompt)
        return _without_a_critic(rollout, estimate(rewards, mask, groups))

    return estimated


def rloo_to_go(rewards: Rewards, rollout: Rollout, config: PPOConfig) -> Experience:
    """The reward-to-go of every token, against the others' at the same position."""
    mask, groups = rollout.sequences.response_mask, prompt_groups(rollout.sequences, config.responses_per_prompt)
    return _without_a_critic(rollout, leave_one_out_to_go(rewards, mask, groups, gamma=config.gamma))


def remax(rewards: Rewards, rollout: Rollout, config: PPOConfig) -> Experience:
    """ReMax: the reward-to-go, against the score of the greedy response to the same prompt.

    Raises:
        ValueError: a rollout that was collected without that score.
    """
    if GreedyScores() not in rollout.evidence:
        raise ValueError(
            "advantages 'remax' needs the scores of greedy responses, and this rollout has none; collect it with a "
            "trainer that has advantages='remax'"
        )
    greedy, mask = rollout.evidence[GreedyScores()], rollout.sequences.response_mask
    return _without_a_critic(rollout, greedy_baseline_advantages(rewards, mask, greedy, gamma=config.gamma))


def reinforce_plus_plus(rewards: Rewards, rollout: Rollout, config: PPOConfig) -> Experience:
    """REINFORCE++: the reward-to-go, whitened over the batch; its mean is the only baseline (Hu et al. 2025)."""
    return _without_a_critic(rollout, discounted_returns(rewards, rollout.sequences.response_mask, gamma=config.gamma))


def prime(rewards: Rewards, rollout: Rollout, config: PPOConfig) -> Experience:
    """PRIME: the scores as outcomes beside the rewards of the tokens, each against the others'."""
    mask, groups = rollout.sequences.response_mask, prompt_groups(rollout.sequences, config.responses_per_prompt)
    return _without_a_critic(
        rollout, outcome_and_process_advantages(rollout.scores, rewards, mask, groups, gamma=config.gamma)
    )


def as_they_are(advantages: Rewards, mask: Bool[Tensor, "batch response"]) -> Rewards:
    """The advantages of an estimator that has a scale of its own."""
    return advantages


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How rewards (score units, KL penalty subtracted) become experience."""

    estimate: Estimate
    critic: bool = False
    """Whether its returns are what the values are trained towards."""
    reaches_tokens: bool
    """Whether credit stays on its tokens. Otherwise only a response's total counts, and dense credit is lost."""
    adds_scores: bool = False
    """Whether it adds the scores to the rewards itself. Credit that sums to the score then counts it twice."""
    scaled: Callable[[Tensor, Tensor], Tensor]
    """What is done to the advantages of a whole buffer: whitened over all its tokens, or nothing."""
    needs: frozenset[EvidenceRequest] = frozenset()
    """What it reads from a rollout beside rewards and values."""

    def update_settings(self, config: PPOConfig) -> PPOConfig:
        """``config`` as the update is to follow it: without a critic the value loss has weight 0."""
        return config if self.critic else replace(config, value_coef=0.0)

    def defined(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures that mean something: without a critic, none of its own."""
        return {name: value for name, value in figures.items() if self.critic or name not in OF_A_CRITIC}


def _of_totals(estimate: OfGroups, scaled: Callable[[Tensor, Tensor], Tensor]) -> Estimator:
    return Estimator(estimate=of_totals(estimate), reaches_tokens=False, scaled=scaled)


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "gae": Estimator(estimate=gae, critic=True, reaches_tokens=True, scaled=masked_whiten),
        "rloo": _of_totals(leave_one_out_advantages, masked_whiten),
        "rloo_to_go": Estimator(estimate=rloo_to_go, reaches_tokens=True, scaled=masked_whiten),
        "grpo": _of_totals(group_normalised_advantages, as_they_are),
        "dr_grpo": _of_totals(group_centred_advantages, as_they_are),
        "opo": _of_totals(length_weighted_advantages, as_they_are),
        "remax": Estimator(estimate=remax, reaches_tokens=True, scaled=as_they_are, needs=frozenset({GreedyScores()})),
        "reinforce_plus_plus": Estimator(estimate=reinforce_plus_plus, reaches_tokens=True, scaled=masked_whiten),
        "reinforce_plus_plus_baseline": _of_totals(group_centred_advantages, masked_whiten),
        "prime": Estimator(estimate=prime, reaches_tokens=True, adds_scores=True, scaled=masked_whiten),
    }
)
"""By the names that ``PPOConfig.advantages`` takes."""


def _without_a_critic(rollout: Rollout, advantages: Tensor) -> Experience:
    """Returns are the values themselves, as there is nothing that a critic should become."""
    return _experience(rollout, advantages, rollout.values)


def _experience(rollout: Rollout, advantages: Tensor, returns: Tensor) -> Experience:
    return Experience(
        sequences=rollout.sequences,
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.ref_logprobs,
        values=rollout.values,
        advantages=advantages,
        returns=returns,
    )
