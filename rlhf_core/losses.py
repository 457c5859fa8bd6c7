"""PPO's two losses. Means over their mask; the update weights a micro-batch by its share of the minibatch's tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.masking import masked_mean
from rlhf_core.surrogates import LOSS_MEANS, SURROGATES, Clip

Loss = tuple[Float[Tensor, ""], dict[str, Tensor]]


def policy_loss(
    new_logprobs: Float[Tensor, "batch response"],
    logprobs: Float[Tensor, "batch response"],
    advantages: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    loss_mean: str = "token",
    longest: int = 1,
) -> Loss:
    """Clipped surrogate: masked mean of max(−A · ratio, −A · clip(ratio, 1 ± clip_range)), ratio = exp(new − old).

    ``new_logprobs`` are those of the policy now, ``logprobs`` those of the rollout (nats); ``advantages`` are A, in any
    unit, whitened or not; ``mask`` is True on response tokens.
    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7, as a loss to minimise. The others
    that ``surrogate`` names, ``clip_range_high`` (None: the same as ``clip_range``), ``dual_clip`` and ``loss_mean``
    are in :mod:`~rlhf_core.surrogates`; ``longest`` is what "fixed" divides by (tokens).
    Stats (means over tokens, detached): ``clip_fraction``, where the clipped term decides; ``approx_kl``,
    ½(new − old)²; ``logprob_drop``, old − new (nats); ``ratio``; ``log_ratio``, abs(new − old) (nats); and the largest
    ratio and abs(log ratio) of a token, ``ratio_max`` and ``log_ratio_max``.

    Raises:
        KeyError: an unknown ``surrogate`` or ``loss_mean``.
        ValueError: the mask selects nothing.
    """
    log_ratio = torch.where(mask, new_logprobs - logprobs, 0)
    clip = Clip(low=clip_range, high=clip_range if clip_range_high is None else clip_range_high, dual=dual_clip)
    made = SURROGATES[surrogate](log_ratio, advantages, mask, clip)
    loss = LOSS_MEANS[loss_mean](made.losses, mask, longest)
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_mean(made.clipped.to(made.ratio.dtype), mask),
            "approx_kl": masked_mean(0.5 * log_ratio.square(), mask),
            "logprob_drop": masked_mean(-log_ratio, mask),
            "ratio": masked_mean(made.ratio, mask),
            "log_ratio": masked_mean(log_ratio.abs(), mask),
            "ratio_max": torch.where(mask, made.ratio, 0).max(),
            "log_ratio_max": log_ratio.abs().max(),
        }
    return loss, stats


def value_loss(
    new_values: Float[Tensor, "batch response"],
    values: Float[Tensor, "batch response"],
    returns: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    clip_range: float,
) -> Loss:
    """0.5 · masked mean of max((V − R)², (clip(V, V_old ± clip_range) − R)²), in squared score units.

    ``new_values`` are V, ``values`` V_old of the rollout, ``returns`` R, all in score units; ``mask`` is True on
    response tokens. Source: OpenAI baselines' PPO2, kept by lm-human-preferences and TRL 0.7.4. Stats (detached):
    ``value_clip_fraction``, the share of tokens where the clipped term decides; ``response_loss``, the same loss
    averaged within each response first, then over responses (the paper's quantity).

    Raises:
        ValueError: the mask selects nothing.
    """
    clipped = values + (new_values - values).clamp(-clip_range, clip_range)
    plain_error = torch.where(mask, new_values - returns, 0).square()
    clipped_error = torch.where(mask, clipped - returns, 0).square()
    token_loss = 0.5 * torch.maximum(plain_error, clipped_error)
    with torch.no_grad():
        per_response = token_loss.sum(1) / mask.sum(1)
        stats = {
            "value_clip_fraction": masked_mean((clipped_error > plain_error).to(token_loss.dtype), mask),
            "response_loss": per_response.mean(),
        }
    return masked_mean(token_loss, mask), stats
