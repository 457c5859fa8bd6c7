"""Log-probability and entropy of response tokens, with a backward pass that stores no more than the logits.

Autograd would keep log-probabilities, their exponential and two masks of every (token, vocab) cell. Here both passes
work on one block at a time, and the backward pass makes the block's distribution again; where the logits themselves are
too many, its logits too.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.passes.distribution import LOWEST, Distribution, Targets, chunks, entropy

# (token, vocab) cells of logits made at a time where they are not kept.
RECOMPUTED_CELLS = 2**25


def token_statistics(
    logits: Float[Tensor, "token vocab"], targets: Targets, distribution: Distribution
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """log p(token) and -Σ p log p of the distribution each token was drawn from, float32, nats."""
    logprobs, entropies = _Statistics.apply(logits, targets, distribution)  # type: ignore[no-untyped-call]
    return logprobs, entropies


def recomputed_statistics(
    hidden: Float[Tensor, "token hidden"],
    head: Callable[[Tensor], Tensor],
    vocab_size: int,
    targets: Targets,
    distribution: Distribution,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """:func:`token_statistics` of ``head(hidden)``, whose logits are made a part at a time and, for the backward pass,
    once more: the largest part is what they take, for one more product with the head."""

    def of(part: Tensor, some: Targets) -> tuple[Tensor, Tensor]:
        return token_statistics(head(part), some, distribution)

    size = max(1, RECOMPUTED_CELLS // vocab_size)
    parts: list[tuple[Tensor, Tensor]] = [
        checkpoint(of, part, some, use_reentrant=False, preserve_rng_state=False)
        for part, some in zip(torch.split(hidden, size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


@torch.no_grad()
def token_logprobs(
    logits: Float[Tensor, "token vocab"], targets: Targets, distribution: Distribution
) -> Float[Tensor, " token"]:
    """log p(token) alone, without gradient."""
    return torch.cat(
        [_of(targets.tokens[chunk], distribution.logprobs(logits, targets, chunk)) for chunk in chunks(logits)]
    )


def _of(tokens: Int[Tensor, " token"], logprobs: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    return logprobs.gather(1, tokens[:, None])[:, 0]


class _Statistics(torch.autograd.Function):
    """∂ log p_y / ∂ z_v = (1[v = y] − p_v) / temperature;  ∂ H / ∂ z_v = −p_v (log p_v + H) / temperature."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Targets, distribution: Distribution) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logprobs = torch.empty(len(logits), device=logits.device)
        entropies = torch.empty_like(logprobs)
        for chunk in chunks(logits):
            every = distribution.logprobs(logits, targets, chunk)
            logprobs[chunk] = _of(targets.tokens[chunk], every)
            entropies[chunk] = entropy(every)
        ctx.save_for_backward(logits, entropies)
        ctx.targets, ctx.distribution = targets, distribution
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, None, None]:
        logits, entropies = ctx.saved_tensors
        targets, distribution = ctx.targets, ctx.distribution
        gradient = torch.empty_like(logits)
        for chunk in chunks(logits):
            every = distribution.logprobs(logits, targets, chunk)
            tokens, factor = targets.tokens[chunk, None], torch.zeros(())
            if of_logprobs is not None:
                factor = of_logprobs[chunk, None]
                of_token = factor.masked_fill(every.gather(1, tokens).isneginf(), 0.0)  # a banned one is constant
            if of_entropies is not None:
                factor = factor + of_entropies[chunk, None] * (every.clamp(min=LOWEST) + entropies[chunk, None])
            block = every.exp_().mul_(factor / -distribution.temperature)
            if of_logprobs is not None:
                block.scatter_add_(1, tokens, of_token / distribution.temperature)
            gradient[chunk] = block
        return gradient, None, None
