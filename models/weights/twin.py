"""A second network over the same weights."""

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def twin(model: Model) -> Model:
    """A copy of ``model`` that holds the very tensors of its frozen weights, and copies of its trained ones.

    Adapters of the two never meet: there is nothing to switch, so that both may run, with checkpointing too, before
    either's gradient is taken; and packed 4-bit weights are held once.
    """
    frozen = (weight for weight in model.parameters() if not weight.requires_grad)
    return _holding(model, (*frozen, *_computed(model)))


def sharing_all(model: Model) -> Model:
    """A copy of ``model`` that holds its very tensors, trained ones too: what an optimizer does to one, it does to
    both. Modules of the copy may be exchanged."""
    return _holding(model, (*model.parameters(), *_computed(model)))


def _holding(model: Model, shared: Iterable[object]) -> Model:
    copied: Model = copy.deepcopy(model, {id(held): held for held in shared})
    return copied


def _computed(model: nn.Module) -> Iterator[object]:
    yield from model.buffers()
    for module in model.modules():  # bitsandbytes keeps the scales of a packed weight beside it
        if (scales := getattr(module, "quant_state", None)) is not None:
            yield scales
