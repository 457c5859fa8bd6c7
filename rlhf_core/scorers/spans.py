"""The bytes of a text that each token covers, and the overlap between two ways to split the same text.

Positions count UTF-8 bytes, because a tokenizer may cut a character (an emoji has four bytes, and often two to four
tokens). Spans are half-open; those of the tokens of a text follow each other without a gap and cover it whole.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor


def byte_offsets(text: str) -> list[int]:
    """Byte at which each character starts, and the number of bytes at the end."""
    offsets = [0]
    for character in text:
        offsets.append(offsets[-1] + len(character.encode()))
    return offsets


def ends_of_prefixes(prefixes: Sequence[str], text: str) -> list[int]:
    """Byte of ``text`` at which each of its tokens ends, told by what the first 1, 2, ... tokens decode to.

    A token ends where its prefix and ``text`` begin to differ. For an incomplete character, a decoder shows something
    else; its bytes are then shared out among its tokens in order, as evenly as whole bytes allow. The last token ends
    with the text.
    """
    offsets = byte_offsets(text)
    agreed, ends = 0, []
    for prefix in prefixes:
        agreed = max(agreed, agreement(prefix, text))
        ends.append(agreed)
    for character, run in groupby(range(len(ends)), key=ends.copy().__getitem__):
        tokens = list(run)
        cut = [token for token in tokens if len(prefixes[token]) > character]
        parts = len(cut) + (tokens[-1] + 1 < len(ends))  # the token that completes the character has a part of it
        size = len(text[character : character + 1].encode())
        for token in tokens:
            ends[token] = offsets[character]
        for part, token in enumerate(cut, start=1):
            ends[token] += size * part // parts
    return [*ends[:-1], offsets[-1]] if ends else []


def agreement(one: str, other: str) -> int:
    """Number of characters at the start that are the same."""
    differing = (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def as_spans(ends: Sequence[int]) -> Int[Tensor, "token 2"]:
    """Start and end of tokens that follow each other from byte 0 on."""
    return torch.tensor(list(pairwise([0, *ends])), dtype=torch.long).reshape(-1, 2)


def shared_bytes(these: Int[Tensor, "this 2"], those: Int[Tensor, "that 2"]) -> Float[Tensor, "this that"]:
    """Number of bytes that each of ``these`` spans has in common with each of ``those``."""
    starts = torch.maximum(these[:, None, 0], those[None, :, 0])
    ends = torch.minimum(these[:, None, 1], those[None, :, 1])
    return (ends - starts).clamp(min=0).float()


def row_shares(shared: Float[Tensor, "this that"]) -> Float[Tensor, "this that"]:
    """Each row divided by its sum; a row of zeros is wholly the last column's. So every row sums to 1."""
    totals = shared.sum(1, keepdim=True)
    last = torch.zeros_like(shared)
    last[:, -1] = 1
    return torch.where(totals > 0, shared / totals.clamp(min=1), last)
