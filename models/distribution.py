"""The one next-token distribution, used for sampling, old, new and reference log-probabilities, entropy and full KL."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_distribution(
    logits: Float[Tensor, "token vocab"],
    eos_ids: Sequence[int],
    steps: Int[Tensor, " token"],
    min_lengths: Int[Tensor, " token"],
    temperature: float,
) -> Float[Tensor, "token vocab"]:
    """Log-probabilities in float32, nats: logits / ``temperature``, EOS banned (-inf) where ``steps < min_lengths``.

    ``steps`` counts a row's response tokens from 0; every id of ``eos_ids`` is banned alike. A row whose logits hold
    NaN or +inf, or whose tokens are all banned, comes out as NaN.
    """
    is_eos = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    is_eos[list(eos_ids)] = True
    banned = (steps < min_lengths)[:, None] & is_eos
    return (logits.float() / temperature).masked_fill(banned, -torch.inf).log_softmax(-1)


def entropy(logprobs: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """-Σ p log p in nats; a banned token contributes 0, to the gradient too."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(-1)


def full_kl(
    logprobs: Float[Tensor, "token vocab"], ref_logprobs: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(policy || reference) = Σ p (log p - log p_ref) in nats; a token banned in both contributes 0."""
    difference = torch.where(logprobs.isneginf(), 0.0, logprobs - ref_logprobs)
    return (logprobs.exp() * difference).sum(-1)
