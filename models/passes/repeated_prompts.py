"""Equal prompts of a batch, found before the model reads them, so that it reads each of them once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Int
from torch import Tensor

_each_alone: ContextVar[bool] = ContextVar("whether every copy of a prompt is read", default=False)


@contextmanager
def every_copy_read() -> Iterator[None]:
    """Inside the block, every copy of a prompt is read by itself. Needed where a pass is random, as under dropout:
    copies that are read once would share their noise."""
    token = _each_alone.set(True)
    try:
        yield
    finally:
        _each_alone.reset(token)


def first_copies(rows: Int[Tensor, "row number"]) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " row"]]:
    """Where each distinct one of ``rows`` stands first, in their order, and which of these every row equals.

    Both are on the CPU, as ``rows`` should be: their numbers are read there. ``rows[first][copies]`` is ``rows``.
    """
    if _each_alone.get():
        return torch.arange(len(rows)), torch.arange(len(rows))
    seen: dict[tuple[int, ...], int] = {}
    firsts = [seen.setdefault(tuple(row), place) for place, row in enumerate(rows.tolist())]
    first, copies = torch.unique(torch.tensor(firsts), return_inverse=True)
    return first, copies
