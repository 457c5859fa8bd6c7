"""Named random streams from one seed.

A stream is a fresh generator keyed by (seed, name, indices): no stream's use disturbs another, two methods with one
seed meet the same prompts, lengths and uniforms, and a resumed run needs no generator state, only its step.
"""

from typing import Literal
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Stream = Literal["init", "prompts", "lengths", "sampling", "minibatches", "evaluation_lengths", "evaluation"]


def stream(seed: int, name: Stream, *indices: int) -> np.random.Generator:
    """The generator of stream ``name`` at the given indices (step, epoch, row ...)."""
    return np.random.default_rng(np.random.SeedSequence([seed, crc32(name.encode()), *indices]))


def seed_of(seed: int, name: Stream) -> int:
    """Stream ``name`` as a number, for what takes a seed of its own: ``load_policy(..., seed=seed_of(seed, "init"))``
    draws initial weights (of an adapter, say) that share no random number with the run's other streams."""
    return int(stream(seed, name).integers(2**63))


def uniforms(seed: int, name: Stream, step: int, rows: int | range, positions: int) -> Float[Tensor, "row position"]:
    """Float64 uniforms in [0, 1), fixed by (seed, step, row, position): a longer limit only appends columns. ``rows``
    is how many, from the first on, or the places of some."""
    places = range(rows) if isinstance(rows, int) else rows
    return torch.stack([torch.from_numpy(stream(seed, name, step, row).random(positions)) for row in places])
