"""A model with 4-bit weights, held a second time with those weights unpacked: to sample from."""

import importlib
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.weights.twin import sharing_all


def dequantised_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of ``model`` whose 4-bit layers hold their weights in ``dtype``; every other tensor is the very same.

    An adapter is therefore never out of date in it, and none is merged: a sum with weights in bfloat16 would lose what
    an adapter changes by less than 1/256 of a weight. Each token then costs the adapter's own products. The copy takes
    the size of ``dtype`` for each number in a linear layer, and must not be trained.
    """
    four_bit: Any = importlib.import_module("bitsandbytes").nn.Linear4bit
    copied, made = sharing_all(model), dict[nn.Module, nn.Module]()
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, four_bit):
                if child not in made:
                    made[child] = DequantisedLinear(child, dtype)
                setattr(module, name, made[child])
    return copied


@final
class DequantisedLinear(nn.Linear):
    """What a 4-bit ``layer`` of bitsandbytes computes, from weights that are dequantised once. It takes and returns
    activations of any dtype, as that layer does, and multiplies in ``dtype``."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        out, into = layer.weight.quant_state.shape
        super().__init__(into, out, bias=False, device="meta")
        functional: Any = importlib.import_module("bitsandbytes.functional")
        whole = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        self.weight = nn.Parameter(whole.to(dtype), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Float[Tensor, "... into"]) -> Float[Tensor, "... out"]:
        """input · weightᵀ + bias."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(input.to(self.weight.dtype), self.weight, bias).to(input.dtype)
