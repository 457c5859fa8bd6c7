"""A second network over the same frozen weights."""

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def twin(model: Model) -> Model:
    """A copy of ``model`` that holds the very tensors of its frozen weights, and copies of its trained ones.

    Adapters of the two never meet: there is nothing to switch, so that both may run, with checkpointing too, before
    either's gradient is taken; and packed 4-bit weights are held once.
    """
    copied: Model = copy.deepcopy(model, {id(held): held for held in _frozen(model)})
    return copied


def _frozen(model: nn.Module) -> Iterator[object]:
    yield from (weight for weight in model.parameters() if not weight.requires_grad)
    yield from model.buffers()
    for module in model.modules():  # bitsandbytes keeps the scales of a packed weight beside it
        if (scales := getattr(module, "quant_state", None)) is not None:
            yield scales
