"""Bytes of weights that are held a second time, to multiply with: under autocast, and to sample from."""

from benchmarks.cost.memory_settings import WIDTHS, MemorySettings
from benchmarks.cost.model_shape import ModelShape


def sampling_copy_bytes(settings: MemorySettings, policy: ModelShape) -> int:
    """The policy's linear layers in ``sampling_dtype``; held from loading on. Nothing else of it is held twice."""
    if settings.sampling_dtype == "none":
        return 0
    return WIDTHS[settings.sampling_dtype] * sum(policy.linear)


def cast_bytes(settings: MemorySettings, shape: ModelShape, *, head: bool = True) -> int:
    """Every matrix that a trained model multiplies with, with or without its ``head``, as autocast casts it once per
    pass and keeps it until the pass ends; without checkpointing, the backward pass reads the same copies."""
    if settings.autocast == "none":
        return 0
    return WIDTHS[settings.autocast] * (sum(shape.linear) + head * shape.vocab * shape.hidden)


def largest_cast_bytes(settings: MemorySettings, shape: ModelShape) -> int:
    """The largest matrix, as autocast casts it: copies of frozen weights are not kept."""
    if settings.autocast == "none":
        return 0
    return WIDTHS[settings.autocast] * max(*shape.linear, shape.vocab * shape.hidden)
