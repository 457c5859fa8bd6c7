"""Micro-batches: rows of similar length together, under a budget of tokens."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.types import Sequences


def micro_batches(sequences: Sequences, token_budget: int) -> Iterator[Int[Tensor, " row"]]:
    """Row indices of each micro-batch, longest rows first, every row in exactly one.

    A micro-batch of n rows costs n x (its longest prompt + response) tokens, padding included, and holds as many
    rows as keep that within ``token_budget``; a single row above the budget still gets a micro-batch of its own.
    Longest first, so that running out of memory happens at once.
    """
    lengths = sequences.prompt_lengths + sequences.response_lengths
    order = torch.argsort(lengths, descending=True, stable=True)
    start = 0
    while start < len(order):
        rows = max(1, token_budget // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
