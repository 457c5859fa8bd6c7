"""Fused equivalents of transformers layers: one operation instead of several.

Nothing here changes a parameter, a name in a state dictionary or a configuration. Results differ only by rounding.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

# Rows of a vocabulary head multiplied at a time on a CPU; one product with all of them runs at two thirds of the rate.
VOCABULARY_PART = 1024


def make_lean(model: PreTrainedModel) -> None:
    """Fuse activations, and multiply with a language model's head in parts, in place."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    in_parts = VocabularyHead(head.weight) if type(head) is nn.Linear and head.bias is None else head
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())
            elif child is head:  # not every model that gives its head can be given one
                setattr(module, name, in_parts)


def share_tied_gradient(lm: PreTrainedModel) -> None:
    """Where input and output embedding are one parameter, write its gradient once.

    The input embedding's part then is sparse, a row per token, and autograd adds it to the output embedding's; as a
    dense matrix it would be filled with zeros and added cell by cell. A loss that does not reach the head would leave
    the sparse part alone, which optimizers refuse: it is made dense (not by ``torch.autograd.grad``, nor in a deep
    copy).
    """
    embedding, head = lm.get_input_embeddings(), lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(embedding) is not nn.Embedding or not embedding.weight.requires_grad:
        return
    if getattr(head, "weight", None) is embedding.weight:
        embedding.sparse = True
        embedding.weight.register_post_accumulate_grad_hook(_make_dense)


@final
class VocabularyHead(nn.Linear):
    """A linear layer without bias from hidden states to a vocabulary, holding the given weight."""

    def __init__(self, weight: nn.Parameter) -> None:
        vocabulary, hidden = weight.shape
        super().__init__(hidden, vocabulary, bias=False, device="meta")
        self.weight = weight

    def forward(self, input: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocab"]:
        """input · weightᵀ."""
        if input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight)
        logits: Tensor = _InParts.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return logits


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        ctx.save_for_backward(rows, weight)
        logits = rows.new_empty(*input.shape[:-1], len(weight))  # no view of it: FSDP2 hooks what a model returns
        for columns, part in zip(
            torch.split(logits.view(len(rows), len(weight)), VOCABULARY_PART, 1),
            torch.split(weight, VOCABULARY_PART),
            strict=True,
        ):
            columns.copy_(F.linear(rows, part))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad
        by_row = gradient.reshape(len(rows), len(weight))
        return (
            (by_row @ weight).view(*gradient.shape[:-1], weight.shape[1]) if of_input else None,
            by_row.T @ rows if of_weight else None,
        )


def _make_dense(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
