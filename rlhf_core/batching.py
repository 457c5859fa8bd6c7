"""Rows in batches under a budget of tokens."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.types import Sequences

# A micro-batch takes a row as long as it pads it by no more than a quarter of the longest row, or is still small.
SIMILAR = 0.75
SMALL = 1 / 8


def micro_batches(sequences: Sequences, token_budget: int) -> Iterator[Int[Tensor, " row"]]:
    """Row indices of each micro-batch, longest rows first, every row in exactly one.

    A micro-batch of n rows costs n x (its longest prompt + response) tokens, padding included, and never more than
    ``token_budget`` unless it is a single row. It ends early, at a row below three quarters of its longest, once it
    holds an eighth of the budget: padding costs as much as text. Longest first, so that running out of memory happens
    at once.
    """
    lengths = sequences.lengths
    order = torch.argsort(lengths, descending=True, stable=True)
    ordered, start = lengths[order].tolist(), 0
    while start < len(ordered):
        longest = ordered[start]
        similar = sum(length >= SIMILAR * longest for length in ordered[start:])
        enough = -int(-SMALL * token_budget // longest)
        rows = max(1, min(token_budget // longest, max(similar, enough)))
        yield order[start : start + rows]
        start += rows


def row_batches(lengths: Int[Tensor, " row"], token_budget: int) -> Iterator[Int[Tensor, " row"]]:
    """Row indices, longest first, as many at a time as n x longest tokens within ``token_budget`` allow, and at least
    one: for rows that leave their batch when they are done, so that similar lengths save nothing."""
    order = torch.argsort(lengths, descending=True, stable=True)
    start = 0
    while start < len(order):
        rows = max(1, token_budget // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
