"""Load-time check of an attention tap: compare the model with the tap, without it, and under eager attention."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.attention.layer_attention import LayerAttention
from models.attention.taps import Tap, UnsupportedAttention, attached, switched
from models.passes.cache import without_cache
from models.passes.rounding import rounds_coarsely

TOLERANCE = 1e-4
ROUNDING_TOLERANCE = 1e-1


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; every module's mode is restored."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def run_backbone(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch position"], attention_mask: Tensor, **options: bool
) -> tuple[Float[Tensor, "batch position hidden"], tuple[Tensor, ...]]:
    """Last hidden states, and the attention maps if ``options`` ask for them."""
    output = model.base_model(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        return_dict=True,
        **without_cache(model),
        **options,
    )
    return output.last_hidden_state, getattr(output, "attentions", None) or ()


def compare_with_untapped(model: PreTrainedModel, tap: Tap, layers: list[nn.Module], vocab_size: int) -> None:
    """Compare ragged left-padded rows, and then full rows (which get no mask at all), with and without the tap.

    Raises:
        UnsupportedAttention: naming the architecture and what differs by how much.
    """
    generator = torch.Generator().manual_seed(0)
    columns = torch.arange(9)
    for lengths in ((9, 4, 7), (9, 9, 9)):
        ids = torch.randint(vocab_size, (3, 9), generator=generator).to(model.device)
        real = (columns >= 9 - torch.tensor(lengths)[:, None]).to(model.device)
        with quiet(model):
            _compare(model, tap, layers, ids, real)


def _compare(
    model: PreTrainedModel,
    tap: Tap,
    layers: list[nn.Module],
    ids: Int[Tensor, "batch position"],
    real: Bool[Tensor, "batch position"],
) -> None:
    name = f"{type(model).__name__} read through its {tap.name}"
    hidden, weights = _tapped(model, tap, layers, ids, real)
    untapped, _ = run_backbone(model, ids, real)
    eager_hidden, eager_weights = _eager(model, ids, real)
    silent = [layer for layer, module in enumerate(layers) if module not in weights]
    if silent or len(eager_weights) != len(layers):
        raise UnsupportedAttention(
            f"{name}: layers {silent} of {len(layers)} never ran; its eager attention shows {len(eager_weights)} layers"
        )
    pairs = {
        "last hidden states differ from those without the tap": (hidden[real], untapped[real]),
        "last hidden states differ from its own eager attention": (hidden[real], eager_hidden[real]),
    }
    for layer, module in enumerate(layers):
        # query columns first, so that only those of real tokens are compared
        rows, own = (
            rearrange(of, "batch head row key -> batch row head key") for of in (weights[module], eager_weights[layer])
        )
        pairs[f"attention weights of layer {layer} differ from its own eager attention"] = (rows[real], own[real])
    exact = not rounds_coarsely(model)
    for what, (tapped, own) in pairs.items():
        difference = tapped.float() - own.float()
        if exact:
            size, tolerance = float(difference.abs().max() / own.float().abs().max()), TOLERANCE
        else:  # single weights of a trained model move by a tenth when the layers below round differently
            size, tolerance = float(difference.norm() / own.float().norm()), ROUNDING_TOLERANCE
        if not size <= tolerance:
            raise UnsupportedAttention(
                f"{name}: {what} by {size:.1e} of the "
                f"{'largest' if exact else 'whole (2-norms)'} (allowed: {tolerance:.0e}); its attention weights cannot "
                "be trusted"
            )


def _tapped(
    model: PreTrainedModel, tap: Tap, layers: list[nn.Module], ids: Tensor, real: Tensor
) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    weights: dict[nn.Module, Tensor] = {}
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

    def keep(module: nn.Module, attention: LayerAttention) -> None:
        weights[module] = attention.weights(columns)

    with attached(tap, model, layers, keep):
        hidden, _ = run_backbone(model, ids, real)
    return hidden, weights


def _eager(model: PreTrainedModel, ids: Tensor, real: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    with switched(model, "eager"):
        return run_backbone(model, ids, real, output_attentions=True)
