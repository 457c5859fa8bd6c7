"""The critic: which of a policy's parameters make its values, and the first steps, in which nothing else learns."""

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf_core.config import PPOConfig, require_use_for_a_critic
from rlhf_core.distributed import gathered
from rlhf_core.sharding import divided, sharding_of
from rlhf_core.types import Policy

Parameters = list[torch.nn.Parameter]


@runtime_checkable
class Critic(Protocol):
    """The part of a policy that its values come from."""

    @property
    def apart(self) -> bool:
        """Whether the value loss moves nothing that log-probabilities depend on; otherwise the two share a trunk."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Those that values depend on and log-probabilities do not; all are among the policy's parameters."""
        ...


@runtime_checkable
class HasCritic(Protocol):
    """A policy that knows its critic. Without one, a policy is taken to share its trunk with it, and ``critic_warmup``
    is refused."""

    @property
    def critic(self) -> Critic:
        """The part that its values come from."""
        ...


def check_critic(policy: Policy, config: PPOConfig) -> None:
    """Refuse, at construction, a critic that would never learn, and a warm-up of an unknown one.

    Raises:
        ValueError: such a combination.
    """
    if config.critic_warmup and not isinstance(policy, HasCritic):
        raise ValueError(
            f"critic_warmup {config.critic_warmup} needs a policy that tells its critic's parameters, as `critic` "
            f"(see rlhf_core.critic.HasCritic); {type(policy).__name__} does not. Add it, or leave critic_warmup out"
        )
    if isinstance(policy, HasCritic) and policy.critic.apart:
        require_use_for_a_critic(config)


def in_warmup(config: PPOConfig, step: int) -> bool:
    """Whether only the critic learns in the step that comes after ``step`` others."""
    return step < config.critic_warmup


def warmup_figures(config: PPOConfig, step: int) -> dict[str, float]:
    """``critic_warmup_steps``: steps so far in which only the critic learned, this one included; nothing where there
    are none."""
    return {"critic_warmup_steps": float(min(step + 1, config.critic_warmup))} if config.critic_warmup else {}


def learning(policy: Policy, config: PPOConfig, step: int) -> Parameters | None:
    """The parameters that the backward pass of this step reaches; None for all."""
    if isinstance(policy, HasCritic) and in_warmup(config, step):
        return list(policy.critic.parameters())
    return None


def clipped_together(policy: Policy) -> Mapping[str, Parameters]:
    """Trained parameters by the figure that is their gradient's norm. A critic apart has a norm of its own: a large
    gradient of one then leaves the other's step as it is."""
    everything = list(policy.parameters())
    if not (isinstance(policy, HasCritic) and policy.critic.apart):
        return {"gradient_norm": everything}
    of_critic = list(policy.critic.parameters())
    known = set(map(id, of_critic))
    return {
        "gradient_norm": [one for one in everything if id(one) not in known],
        "critic_gradient_norm": of_critic,
    }


def divided_norms(policy: Policy) -> dict[str, float]:
    """2-norms of the gradients of divided weights, over all processes, by name; nothing where none are divided."""
    if sharding_of(policy) is None:
        return {}
    every = gathered(lambda: {name: float(norm) for name, norm in _norms(policy, of_parts=True).items()})
    return {name: total_norm(one[name] for one in every) for name in every[0]}


def gradient_norms(policy: Policy, of_parts: Mapping[str, float]) -> dict[str, Tensor]:
    """2-norms of the gradients before clipping, by name; 0 where there is no gradient. ``of_parts`` are those of
    divided weights."""
    norms = _norms(policy, of_parts=False)
    return {
        name: torch.linalg.vector_norm(torch.stack([norm, norm.new_tensor(of_parts[name])])) if of_parts else norm
        for name, norm in norms.items()
    }


def _norms(policy: Policy, *, of_parts: bool) -> dict[str, Tensor]:
    parts = divided(policy)
    return {
        name: torch.nn.utils.get_total_norm(
            [one.grad for one in group if one.grad is not None and (id(one) in parts) == of_parts]
        )
        for name, group in clipped_together(policy).items()
    }


def total_norm(norms: Iterable[float]) -> float:
    """2-norm of all gradients together."""
    return math.hypot(*norms)


def clip(policy: Policy, norms: Mapping[str, Tensor], limit: float) -> None:
    """Scale the gradients of each group down to a norm of ``limit``."""
    for name, group in clipped_together(policy).items():
        torch.nn.utils.clip_grads_with_norm_(group, limit, norms[name])
