"""Passes of a policy over many responses, so many rows at a time as a budget of tokens allows."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.batching import TokenBudget, micro_batches, run_in_parts
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Evaluation, Policy, Sequences


def evaluate(
    policy: Policy,
    sequences: Sequences,
    needs: frozenset[EvidenceRequest],
    temperature: float,
    budget: TokenBudget,
) -> Evaluation:
    """Log-probabilities, values, entropy (batch, response) and evidence, as ``Policy.evaluate`` gives them."""
    mask = sequences.response_mask
    logprobs, values, entropy = (torch.zeros(mask.shape, device=mask.device) for _ in range(3))
    evidence = {request: torch.zeros(request.shape(*mask.shape), device=mask.device) for request in needs}

    def measure_rows(rows: Int[Tensor, " row"]) -> None:
        part = policy.evaluate(sequences.select(rows), needs, temperature=temperature)
        _put(logprobs, rows, part.logprobs)
        _put(values, rows, part.values)
        _put(entropy, rows, part.entropy)
        for request, whole in evidence.items():
            _put(whole, rows, part.evidence[request])

    lengths = sequences.counts.total
    run_in_parts(measure_rows, partial(micro_batches, sequences), lengths, budget, phase="log-probabilities")
    return Evaluation(logprobs=logprobs, values=values, entropy=entropy, evidence=evidence)


def reference_logprobs(
    policy: Policy, sequences: Sequences, temperature: float, budget: TokenBudget
) -> Float[Tensor, "batch response"]:
    """Log-probabilities under the frozen reference, in nats."""
    mask = sequences.response_mask
    logprobs = torch.zeros(mask.shape, device=mask.device)

    def measure_rows(rows: Int[Tensor, " row"]) -> None:
        _put(logprobs, rows, policy.reference_logprobs(sequences.select(rows), temperature=temperature))

    lengths = sequences.counts.total
    run_in_parts(measure_rows, partial(micro_batches, sequences), lengths, budget, phase="reference log-probabilities")
    return logprobs


def _put(whole: Tensor, rows: Tensor, part: Tensor) -> None:
    """Copy the rows of a part, which may have fewer columns, to their places in the whole."""
    columns = part.shape[1] if part.ndim > 1 else 0
    home = whole[:, :columns] if columns else whole
    home[rows.to(whole.device, non_blocking=True)] = part.to(whole.dtype)
