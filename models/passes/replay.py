"""Given responses, decoded one token at a time as if they were being sampled: what the sampling pass makes of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.passes.distribution import Distribution, token_distribution
from models.passes.sampling import Decoder
from rlhf_core.types import Sequences


@torch.no_grad()
def replayed_logprobs(
    decoder: Decoder, sequences: Sequences, distribution: Distribution
) -> Float[Tensor, "batch response"]:
    """Log-probability (nats) of each response token in ``distribution``, from the logits that ``decoder`` would draw it
    from; 0 on padding."""
    tokens, mask = sequences.response_ids, sequences.response_mask
    found = torch.zeros(mask.shape, device=mask.device)
    logits = decoder.start(sequences.prompt_ids.cpu(), sequences.prompt_mask.cpu())
    for step in range(mask.shape[1]):
        steps = torch.full_like(sequences.min_lengths, step)
        logprobs = token_distribution(
            logits,
            distribution.eos_ids,
            steps,
            sequences.min_lengths,
            distribution.temperature,
            unnamed=distribution.unnamed,
        )
        found[:, step] = logprobs.gather(1, tokens[:, step, None])[:, 0]
        if step + 1 < mask.shape[1]:
            logits = decoder.advance(tokens[:, step])
    return torch.where(mask, found, 0.0)
