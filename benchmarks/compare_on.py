"""One frozen rollout through many methods: the same responses, scores and values, so that only credit differs.

Nothing is trained. Collect the rollout with the evidence of all methods (``experiment.frozen_rollout``, or a trainer
whose redistributor needs it).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.credit.frozen_credit import restricted
from benchmarks.credit.gradients import gram, policy_gradients, relative_variance
from redistributors import Sparse
from rlhf_core.advantages import ESTIMATORS
from rlhf_core.checks import check_gamma, check_placement, require_token_scores
from rlhf_core.config import PPOConfig
from rlhf_core.metrics import credit_metrics, critic_metrics
from rlhf_core.rewards import penalised
from rlhf_core.types import Policy, Redistributor, ReportsMetrics, Rollout


@dataclass(frozen=True, eq=False, kw_only=True)
class Credit:
    """What one method makes of a rollout; tensors are in score units, 0 on padding."""

    token_scores: Float[Tensor, "batch response"]
    """The score, spread."""
    rewards: Float[Tensor, "batch response"]
    """Token scores less the KL penalty."""
    returns: Float[Tensor, "batch response"]
    """What a critic would be trained towards; the values where the estimator needs none."""
    advantages: Float[Tensor, "batch response"]
    """As the config's estimator gives them, not whitened."""
    figures: Mapping[str, float]
    """As in the glossary of the repository's README: ``explained_variance`` and
    ``explained_variance_over_position`` of the rollout's values, ``credit_concentration`` (tokens),
    ``conservation_error``, the variances of returns and advantages, and the method's own; what is undefined is left
    out."""
    gradient: Float[Tensor, " parameter"] | None
    """Of the policy loss at ratio 1 (see ``gradients.policy_gradients``); None where no policy was given."""


def compare_on(
    rollout: Rollout,
    redistributors: Mapping[str, Redistributor],
    *,
    config: PPOConfig,
    kl_coef: float,
    policy: Policy | None,
) -> dict[str, Credit]:
    """Every method's credit for ``rollout``, under its name; each sees the evidence it asked for.

    ``kl_coef``: the penalty in score units per nat.

    ``policy`` is the one that drew the rollout, for the gradients; its weights are left as they are.

    Raises:
        ValueError: evidence that the rollout does not hold, a gamma that a method cannot take, or rows that the
            config's estimator cannot group.
        HealthError: token scores that break the contract.
    """
    estimator, made = ESTIMATORS[config.advantages], {}
    for name, redistributor in redistributors.items():
        check_gamma(redistributor, config.gamma)
        token_scores = redistributor(restricted(rollout, redistributor))
        require_token_scores(token_scores, rollout, redistributor)
        check_placement(token_scores, rollout, redistributor, config.gamma)
        rewards = penalised(token_scores, rollout.kl, kl_coef)
        made[name] = token_scores, rewards, estimator.estimate(rewards, rollout, config)
    advantages = {name: experience.advantages for name, (_, _, experience) in made.items()}
    gradients = {} if policy is None else _gradients(policy, rollout, advantages, config)
    return {
        name: Credit(
            token_scores=token_scores,
            rewards=rewards,
            returns=experience.returns,
            advantages=experience.advantages,
            figures={
                **credit_metrics(token_scores, rollout),
                **estimator.defined(critic_metrics(experience)),
                **_own_figures(redistributors[name], rollout),
            },
            gradient=gradients.get(name),
        )
        for name, (token_scores, rewards, experience) in made.items()
    }


def _own_figures(redistributor: Redistributor, rollout: Rollout) -> dict[str, float]:
    return (
        redistributor.metrics(restricted(rollout, redistributor)) if isinstance(redistributor, ReportsMetrics) else {}
    )


def reference_gradient(
    policy: Policy, rollouts: Iterable[Rollout], *, config: PPOConfig, kl_coef: float
) -> Float[Tensor, " parameter"]:
    """The many-sample estimate: mean gradient of sparse credit at λ = 1 with GAE, which a critic's errors do not bias,
    over rollouts of the same prompts. They are taken one at a time.

    Raises:
        ValueError: no rollouts.
    """
    unbiased, total, count = replace(config, lam=1.0, advantages="gae"), torch.zeros(()), 0
    for rollout in rollouts:
        total = total + _gradient(policy, rollout, Sparse(), config=unbiased, kl_coef=kl_coef)
        count += 1
    if not count:
        raise ValueError("reference_gradient: no rollouts were given")
    return total / count


def gradient_variance(
    policy: Policy, rollouts: Iterable[Rollout], redistributor: Redistributor, *, config: PPOConfig, kl_coef: float
) -> float:
    """Trace of a method's gradient's covariance over repeated rollouts of the same prompts, over the squared norm of
    its expectation (``gradients.relative_variance``): how many rollouts it takes for the noise to be no larger than the
    signal. No unit; falls as 1 / rollout size. NaN where the rollouts are too few to tell.

    Raises:
        ValueError: fewer than two rollouts.
    """
    found = [_gradient(policy, rollout, redistributor, config=config, kl_coef=kl_coef) for rollout in rollouts]
    return relative_variance(gram(torch.stack(found) if found else torch.empty(0, 0)))


def _gradient(
    policy: Policy, rollout: Rollout, redistributor: Redistributor, *, config: PPOConfig, kl_coef: float
) -> Float[Tensor, " parameter"]:
    credit = compare_on(rollout, {"the": redistributor}, config=config, kl_coef=kl_coef, policy=None)["the"]
    return _gradients(policy, rollout, {"the": credit.advantages}, config)["the"]


def _gradients(
    policy: Policy, rollout: Rollout, advantages: Mapping[str, Tensor], config: PPOConfig
) -> Mapping[str, Float[Tensor, " parameter"]]:
    budget, temperature = config.micro_batch_tokens, config.temperature
    return policy_gradients(policy, rollout.sequences, advantages, budget, temperature=temperature)
