"""The policy's objective per token, by name: PPO, GSPO and CISPO; and the means over a batch that make a loss of it.

Everything is (batch, response), a loss to minimise, 0 on padding. ``log_ratio`` is new − old log-probability (nats).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.masking import masked_mean

LOG_RATIO_LIMIT = 60.0
"""Beyond it (nats) a ratio is cut: a minibatch is skipped long before, but an infinite ratio times an advantage of 0,
or times the gradient of the side that was not taken, would be NaN."""

PerToken = Float[Tensor, "batch response"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Ratios stay in [1 − low, 1 + high]; ``dual`` (above 1, or None) bounds the loss where A < 0 at −A · dual."""

    low: float
    high: float
    dual: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Surrogate:
    """``losses`` per token, the ``ratio`` they are made of, and where the ``clipped`` term decides."""

    losses: PerToken
    ratio: PerToken
    clipped: Bool[Tensor, "batch response"]


def ppo(log_ratio: PerToken, advantages: PerToken, mask: Bool[Tensor, "batch response"], clip: Clip) -> Surrogate:
    """max(−A · ratio, −A · clip(ratio, 1 − low, 1 + high)); with ``dual``, at most −A · dual where A < 0.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7; high > low: Yu et al. 2025, "DAPO",
    arXiv 2503.14476, eq. 10; dual: Ye et al. 2020, "Mastering complex control in MOBA games", arXiv 1912.09729, eq. 4.
    """
    return _clipped(_ratio(log_ratio), advantages, clip)


def gspo(log_ratio: PerToken, advantages: PerToken, mask: Bool[Tensor, "batch response"], clip: Clip) -> Surrogate:
    """PPO's with one ratio per response, exp of the mean log ratio over its tokens; the gradient of a token is its own.

    So a token's advantage reaches that token (GSPO-token). Only where all of a response's advantages are equal is this
    the plain GSPO.
    Source: Zheng et al. 2025, "Group sequence policy optimization", arXiv 2507.18071, eq. 13 to 15.
    """
    means = torch.where(mask, log_ratio, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    own = log_ratio - log_ratio.detach()  # 0, with the gradient of the token's log-probability
    return _clipped(_ratio(torch.where(mask, own + means.detach(), 0)), advantages, clip)


def cispo(log_ratio: PerToken, advantages: PerToken, mask: Bool[Tensor, "batch response"], clip: Clip) -> Surrogate:
    """−A · w · log π with the weight w = clip(ratio, 1 − low, 1 + high) held constant: no token loses its gradient.

    The value is −A · w · (log ratio), which differs from that by what no gradient sees.
    Source: MiniMax 2025, "MiniMax-M1", arXiv 2506.13585, eq. 4 and 5.
    """
    ratio = _ratio(log_ratio)
    weights = ratio.clamp(1 - clip.low, 1 + clip.high).detach()
    return Surrogate(losses=-advantages * weights * log_ratio, ratio=ratio, clipped=weights != ratio)


def token_mean(losses: PerToken, mask: Bool[Tensor, "batch response"], longest: int) -> Float[Tensor, ""]:
    """Mean over all tokens."""
    return masked_mean(losses, mask)


def response_mean(losses: PerToken, mask: Bool[Tensor, "batch response"], longest: int) -> Float[Tensor, ""]:
    """Mean within each response, then over responses: tokens of long responses weigh less (GRPO as published)."""
    return (torch.where(mask, losses, 0).sum(1) / mask.sum(1)).mean()


def fixed_mean(losses: PerToken, mask: Bool[Tensor, "batch response"], longest: int) -> Float[Tensor, ""]:
    """Sum within each response over ``longest``, the same number for all; then the mean over responses (Dr. GRPO)."""
    return (torch.where(mask, losses, 0).sum(1) / longest).mean()


SURROGATES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Clip], Surrogate]] = MappingProxyType(
    {"ppo": ppo, "gspo": gspo, "cispo": cispo}
)
LOSS_MEANS: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = MappingProxyType(
    {"token": token_mean, "response": response_mean, "fixed": fixed_mean}
)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=LOG_RATIO_LIMIT).exp()


def _clipped(ratio: Tensor, advantages: Tensor, clip: Clip) -> Surrogate:
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip.low, 1 + clip.high)
    losses = torch.maximum(unclipped, clipped)
    if clip.dual is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * clip.dual), losses)
    return Surrogate(losses=losses, ratio=ratio, clipped=clipped > unclipped)
