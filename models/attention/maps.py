"""Whole attention maps of a forward pass, and a score's gradient with respect to them.

Only eager attention makes maps, so a model is switched to it for the pass and back. All layers' maps exist together:
layers x heads x columns numbers per token, twice with gradients. If a row or two are enough, use
:mod:`models.attention.reader`, which computes no map.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from models.attention.taps import UnsupportedAttention, switched
from models.passes.cache import without_cache

Maps = tuple[Float[Tensor, "batch head query key"], ...]
Scores = Callable[[Float[Tensor, "batch position hidden"]], Float[Tensor, " batch"]]


@torch.no_grad()
def attention_maps(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch position"], real: Bool[Tensor, "batch position"]
) -> Maps:
    """The map of every layer, from the first on, in float32 at least; 0 for queries and keys that are padding.

    Raises:
        UnsupportedAttention: the model returns none.
    """
    _, maps = _run(model, real, input_ids=input_ids)
    return _without_padding(maps, real)


def map_gradients(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch position"],
    real: Bool[Tensor, "batch position"],
    score: Scores,
) -> tuple[Maps, Maps]:
    """The maps and ∂score/∂A of each, A held free of the softmax it came from; no parameter gets a gradient.

    Raises:
        UnsupportedAttention: the model returns no maps, or maps that its output is not made of.
    """
    with torch.enable_grad():
        # frozen models build a graph only where an input wants one
        embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_()
        hidden, maps = _run(model, real, inputs_embeds=embedded)
        if not all(weights.requires_grad for weights in maps):
            raise UnsupportedAttention(f"{type(model).__name__} returns attention maps that carry no gradient")
        gradients = torch.autograd.grad(score(hidden).sum(), maps, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    if len(found) < len(maps):
        unused = [layer for layer, gradient in enumerate(gradients) if gradient is None]
        raise UnsupportedAttention(
            f"{type(model).__name__} returns attention maps that its score does not depend on (layers {unused})"
        )
    return _without_padding(tuple(weights.detach() for weights in maps), real), _without_padding(tuple(found), real)


def why_not_gradients(model: PreTrainedModel, score: Scores) -> str:
    """Why :func:`map_gradients` cannot work, tested on five tokens; empty if it can."""
    ids = torch.arange(5, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        map_gradients(model, ids, torch.ones_like(ids, dtype=torch.bool), score)
    except UnsupportedAttention as reason:
        return str(reason)
    return ""


def _run(model: PreTrainedModel, real: Bool[Tensor, "batch position"], **inputs: Tensor) -> tuple[Tensor, Maps]:
    with switched(model, "eager"):
        output = model.base_model(
            **inputs,
            attention_mask=real.long(),
            return_dict=True,
            output_attentions=True,
            **without_cache(model),
        )
    maps = tuple(getattr(output, "attentions", None) or ())
    if not maps:
        raise UnsupportedAttention(f"{type(model).__name__} returns no attention maps under eager attention")
    return output.last_hidden_state, maps


def _without_padding(maps: Maps, real: Bool[Tensor, "batch position"]) -> Maps:
    outside = ~(real[:, None, :, None] & real[:, None, None, :])
    return tuple(
        weights.to(torch.promote_types(weights.dtype, torch.float32)).masked_fill(outside, 0) for weights in maps
    )
