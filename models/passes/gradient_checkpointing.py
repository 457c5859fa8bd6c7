"""Train mode with activation checkpointing where gradients flow, eval mode without it elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def checkpointed_modules(lm: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Prepare ``lm`` for checkpointing (recomputing activations in the backward pass), and leave it switched off.

    Returns the modules that carry the switch, an attribute ``gradient_checkpointing``.

    Raises:
        ValueError: from transformers, naming an architecture that has none.
    """
    recompute_activations(lm)
    modules = tuple(module for module in lm.modules() if getattr(module, "gradient_checkpointing", False))
    _switch(modules, False)
    return modules


def recompute_activations(lm: PreTrainedModel) -> None:
    """Switch checkpointing on, which then works in train mode only."""
    model: Any = lm
    # renamed in transformers 5.23, where the old name warns
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()  # a hook that only reentrant checkpointing needs


@contextmanager
def pass_mode(lm: nn.Module, checkpointed: Sequence[nn.Module]) -> Iterator[None]:
    """Mode for one pass, decided by whether gradients are enabled; every module is put back as it was.

    Models skip checkpointing in eval mode, and sample wrong tokens with it in train mode.
    """
    before = [(module, module.training) for module in lm.modules()]
    lm.train(torch.is_grad_enabled())
    _switch(checkpointed, torch.is_grad_enabled())
    try:
        yield
    finally:
        _switch(checkpointed, False)
        for module, training in before:
            module.training = training


def _switch(modules: Sequence[nn.Module], on: bool) -> None:
    for module in modules:
        module.gradient_checkpointing = on  # type: ignore[assignment]
