"""Rows of equal lengths, which need no padding: what passes are measured on."""

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.types import Sequences


def equal_rows(prompt_ids: Int[Tensor, "batch prompt"], response_ids: Int[Tensor, "batch response"]) -> Sequences:
    """Prompts with responses that ended; EOS is banned nowhere."""
    rows, length = response_ids.shape
    return Sequences(
        prompt_ids=prompt_ids,
        prompt_mask=torch.ones_like(prompt_ids, dtype=torch.bool),
        response_ids=response_ids,
        response_mask=torch.ones_like(response_ids, dtype=torch.bool),
        min_lengths=torch.zeros(rows, dtype=torch.long),
        max_lengths=torch.full((rows,), length),
        finished=torch.ones(rows, dtype=torch.bool),
    )
