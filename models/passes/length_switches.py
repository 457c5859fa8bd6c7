"""Lengths at which a model changes its computation (a "switch"), lowered so that a short probe can reach them.

A probe of ten tokens cannot see a window of 4,096 tokens. So the probe runs twice: on the model as it is, and once more
with every such length set to four tokens, which runs the same code beyond each switch. A length that no batch can reach
within the model's context is left unchanged.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

# Windows and chunks of attention; Llama 4 scales its queries from a position on.
SWITCHES = ("sliding_window", "attention_chunk_size", "floor_scale")
NEAR = 4
# Longest text that a probe reads to reach a switch that cannot be moved.
REACH = 256


@contextmanager
def within_reach(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, every switch that a batch can reach is set to four tokens."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    reach = math.inf if context is None else 2 * context  # the longest prompt beside the longest response
    owners = {id(owner): owner for module in model.modules() for owner in (module, *_configurations(module))}
    held = [
        (owner, name, value)
        for owner in owners.values()
        for name in SWITCHES
        if isinstance(value := vars(owner).get(name), int) and NEAR < value < reach
    ]
    try:
        for owner, name, _ in held:
            setattr(owner, name, NEAR)
        yield
    finally:
        for owner, name, value in held:
            setattr(owner, name, value)


def past_switches(context: int | None) -> tuple[int, int]:
    """Lengths of a longer and a shorter row, both past what :func:`within_reach` moves, as far as the context goes."""
    longer = 11 if context is None else min(11, context)
    return longer, max(1, longer - 4)


def beside_switches(model: PreTrainedModel, context: int | None) -> list[tuple[int, int]]:
    """Lengths of a longer and a shorter row, for each pass of a probe: ordinary ones, and both sides of the length
    from which a rotary table is another, where the context goes beyond it."""
    text = model.config.get_text_config()
    named = {getattr(text, "original_max_position_embeddings", None)}
    rope = getattr(text, "rope_parameters", None) or {}
    for settings in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
        named.add(settings.get("original_max_position_embeddings"))
    reach = REACH if context is None else min(REACH, context - 2)
    return [(6, 4), *sorted((at + 2, at - 1) for at in named if isinstance(at, int) and 4 <= at <= reach)]


def _configurations(module: nn.Module) -> tuple[object, ...]:
    config = getattr(module, "config", None)
    return () if config is None else (config,)
