"""Four places where a transformers model can be tapped for the attention weights of a layer.

``DISPATCH``: models that look their attention function up in transformers' ``AttentionInterface`` get one of ours,
SDPA plus a sink that sees queries, keys, values and mask. ``INSTANCE``: GPT-J and its kin compute attention in a method
``_attn(query, key, value, attention_mask)``, shadowed on the instance while a sink listens. ``MAPS``: whatever returns
its weights under eager attention is hooked; one layer's map at a time exists then, as the model made it. ``ASKED``:
the same of modules that return their weights only when they are asked to (DeBERTa, MPNet).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from models.attention.layer_attention import LayerAttention, Map, Projections

# "sdpa" in the name makes transformers refuse it for every architecture that declares SDPA wrong for itself.
NAME = "sdpa_with_row_tap"
CPU_KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"
# Logarithm of a softmax's denominator above which float32 rounds it by more than 1e-5, and the weights with it.
LARGEST_TOTAL = 2.0**7


class UnsupportedAttention(ValueError):
    """The attention weights of this architecture cannot be read; the message names it and says why."""


Sink = Callable[[nn.Module, LayerAttention], None]
Detach = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A way in. ``require`` raises UnsupportedAttention for a model that it does not fit; ``attach`` makes a module
    report to a sink until the returned function is called, while the model's attention is the one named by
    ``implementation`` (its own, where that is None), which computes as ``computes_as`` does."""

    name: str
    require: Callable[[PreTrainedModel], None]
    attach: Callable[[nn.Module, Sink], Detach]
    implementation: str | None
    computes_as: str | None

    def rides_on(self, model: PreTrainedModel) -> bool:
        """Whether a pass it listens to computes, to the bit, what the model computes alone."""
        return self.computes_as is None or all(name == self.computes_as for _, name in implementations(model))


@contextmanager
def attached(tap: Tap, model: PreTrainedModel, modules: list[nn.Module], sink: Sink) -> Iterator[None]:
    """Inside the block, ``modules`` of ``model`` report to ``sink``; afterwards the model is as it was."""
    with ExitStack() as stack:
        if tap.implementation is not None:
            stack.enter_context(switched(model, tap.implementation))
        for module in modules:
            stack.callback(tap.attach(module, sink))
        yield


@contextmanager
def switched(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Inside the block, every part of ``model`` uses another attention implementation; afterwards its own is restored.

    Directly on the configurations: ``set_attn_implementation`` only logs a warning for Falcon, which reads its own
    configuration at every forward pass all the same."""
    saved = implementations(model)
    try:
        for config, _ in saved:
            config._attn_implementation = implementation
        yield
    finally:
        for config, own in saved:
            config._attn_implementation = own


def implementations(model: PreTrainedModel) -> list[tuple[Any, Any]]:
    """Every configuration inside ``model`` with the name of its attention implementation."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    return [(config, config._attn_implementation) for config in configs.values()]


# Keyed by module, so that models in one process, even with a shared configuration, do not see each other's sinks.
_SINKS: WeakKeyDictionary[nn.Module, Sink] = WeakKeyDictionary()


def _tapped_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention function, which also passes its inputs to the sink of ``module``, if there is
    one."""
    sink = _SINKS.get(module)
    if sink is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    with _LogTotals() as kernel:  # type: ignore[no-untyped-call]
        output = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    causal, scaling = options.get("is_causal"), options.get("scaling")
    attention = Projections(
        query=query.detach(),
        key=key.detach(),
        value=value.detach(),
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=attention_mask,
        causal=getattr(module, "is_causal", True) if causal is None else causal,
        log_totals=kernel.totals_of(query) if attention_mask is None else None,
    )
    sink(module, attention)
    return output


@final
class _LogTotals(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch annotates neither this nor __init__
    """Keeps the log-sum-exp of every row, which torch's fused CPU attention returns besides its output and SDPA drops.

    Other kernels give it in other forms, or only where a gradient is wanted; with them there is none."""

    _found: tuple[Tensor, torch.dtype] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name() == CPU_KERNEL:
            self._found = result[1].detach(), args[0].dtype
        return result

    def totals_of(self, query: Tensor) -> Tensor | None:
        """(batch, head, query) in float32, None if another kernel ran, or on numbers that autocast had rounded, or
        where a total is so large that its own rounding would show in the weights."""
        if self._found is None:
            return None
        totals, dtype = self._found
        usable = dtype == query.dtype and totals.shape == query.shape[:3]
        usable = usable and bool((totals.abs() <= LARGEST_TOTAL).all())
        return totals if usable else None


AttentionInterface.register(NAME, _tapped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _require_dispatch(model: PreTrainedModel) -> None:
    # transformers' own statements on the architecture: its source asks the interface, and SDPA computes the same.
    if not model._can_set_attn_implementation():
        raise UnsupportedAttention("does not look its attention function up in transformers' AttentionInterface")
    if not model._supports_sdpa:
        raise UnsupportedAttention("declares that SDPA does not compute its attention")


def _attach_dispatch(module: nn.Module, sink: Sink) -> Detach:
    _require_free(module in _SINKS, module)
    _SINKS[module] = sink
    return lambda: _SINKS.__delitem__(module)


def _require_instance(model: PreTrainedModel) -> None:
    if not any(callable(getattr(module, "_attn", None)) for module in model.modules()):
        raise UnsupportedAttention("has no module with a method _attn(query, key, value, attention_mask)")


def _attach_instance(module: nn.Module, sink: Sink) -> Detach:
    original = getattr(module, "_attn", None)
    if not callable(original):
        return lambda: None
    _require_free("_attn" in vars(module), module)

    def shadow(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Any:
        sink(module, _instance_projections(module, query.detach(), key.detach(), value.detach(), attention_mask))
        return original(query, key, value, attention_mask)

    module._attn = shadow  # type: ignore[assignment]  # a function on an instance, not a submodule
    return lambda: delattr(module, "_attn")


def _instance_projections(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Projections:
    """GPT-J divides by ``scale_attn``; GPT-Neo does not scale and keeps causality and window in a boolean ``bias``."""
    allowed = getattr(module, "bias", None)
    if isinstance(allowed, Tensor) and allowed.ndim == 4:
        window = allowed[:, :, : query.shape[2], : key.shape[2]].bool()
        lowest = torch.finfo(torch.float32).min
        additive = torch.zeros_like(window, dtype=torch.float32).masked_fill(~window, lowest)
        mask = additive if mask is None else torch.where(window, mask, additive)
    scaling = 1 / float(getattr(module, "scale_attn", 1.0))
    return Projections(query=query, key=key, value=value, scaling=scaling, mask=mask, causal=True, log_totals=None)


def _attach_maps(module: nn.Module, sink: Sink) -> Detach:
    def hook(_: nn.Module, __: object, output: object) -> None:
        found = _map_in(output)
        if found is not None:
            sink(module, Map(found.detach()))

    return module.register_forward_hook(hook).remove


def _attach_asked(module: nn.Module, sink: Sink) -> Detach:
    signature = inspect.signature(module.forward)
    if "output_attentions" not in signature.parameters:
        return lambda: None

    def ask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind(*args, **kwargs)  # some callers give it by position
        given.arguments["output_attentions"] = True
        return given.args, given.kwargs

    asked, detach = module.register_forward_pre_hook(ask, with_kwargs=True), _attach_maps(module, sink)

    def end() -> None:
        asked.remove()
        detach()

    return end


def _map_in(output: object) -> Tensor | None:
    """The one square (batch, head, query, key) tensor behind a module's first output, if there is one."""
    if not isinstance(output, tuple):
        return None
    maps = (item for item in output[1:] if isinstance(item, Tensor) and item.ndim == 4)
    square = [item for item in maps if item.shape[2] == item.shape[3]]
    return square[0] if len(square) == 1 else None


def _require_free(taken: bool, module: nn.Module) -> None:
    if taken:
        raise RuntimeError(f"{type(module).__name__} is being captured already: captures of one model do not nest")


DISPATCH = Tap(
    name="attention interface",
    require=_require_dispatch,
    attach=_attach_dispatch,
    implementation=NAME,
    computes_as="sdpa",
)
INSTANCE = Tap(
    name="_attn of the instance",
    require=_require_instance,
    attach=_attach_instance,
    implementation=None,
    computes_as=None,
)
MAPS = Tap(
    name="eager attention",
    require=lambda model: None,
    attach=_attach_maps,
    implementation="eager",
    computes_as="eager",
)
ASKED = Tap(
    name="eager attention, asked for its weights",
    require=lambda model: None,
    attach=_attach_asked,
    implementation="eager",
    computes_as="eager",
)
TAPS = (DISPATCH, INSTANCE, MAPS, ASKED)
