"""How far the pass that draws tokens is from the pass that gives their log-probabilities: by rounding alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.passes.replay import replayed_logprobs
from models.policy.causal_policy import CausalPolicy
from rlhf_core.types import Sequences


@torch.no_grad()
def sampling_noise(
    policy: CausalPolicy, sequences: Sequences, *, temperature: float = 1.0
) -> Float[Tensor, "batch response"]:
    """log p of each response token of ``sequences`` as ``policy`` samples it, minus that of ``policy.evaluate``, in
    nats; 0 on padding."""
    sequences, network = sequences.to(policy.device), policy._network
    evaluated = policy.evaluate(sequences, frozenset(), temperature=temperature).logprobs
    with network.mode():
        decoder = network.decoder(sequences.counts.response)
        sampled = replayed_logprobs(decoder, sequences, policy._distribution(temperature))
    return sampled - evaluated
