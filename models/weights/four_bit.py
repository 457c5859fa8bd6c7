"""4-bit weights: NormalFloat with double quantisation (Dettmers et al. 2023, "QLoRA"), through bitsandbytes."""

import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from huggingface_hub import constants
from torch import nn
from transformers import BitsAndBytesConfig

from rlhf_core.batching import out_of_memory
from rlhf_core.config import PPOConfig

_ABSENT = ModuleType("absent")


def four_bit_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation; matrix products are computed in ``compute_dtype``."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def stored_quantisation(name: str, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the weights of a folder or hub model are quantised, by its config.json; None if they are not.

    Raises:
        ValueError: they are quantised, but not by bitsandbytes to 4 bits; names the method.
    """
    stored = config.get("quantization_config")
    if stored is None:
        return None
    method = stored.get("quant_method", "bitsandbytes") if isinstance(stored, Mapping) else stored
    if method != "bitsandbytes" or not isinstance(stored, Mapping) or not stored.get("load_in_4bit"):
        told = f"{method}, not in 4-bit" if method == "bitsandbytes" else method
        raise ValueError(
            f"{name} holds weights quantised by {told}; only bitsandbytes in 4-bit is read. Load the model that it was "
            "made from, with four_bit=True where memory is short"
        )
    if stored.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise ValueError(
            f"{name} holds 4-bit weights packed as {stored['bnb_4bit_quant_storage']}, which look like weights; save "
            "it again with bnb_4bit_quant_storage='uint8'"
        )
    return stored


def keep_unpacked(model: nn.Module) -> None:
    """Switch off the CPU inference format of 4-bit layers; to be called before their first forward pass.

    On CPUs with AVX512-BF16, bitsandbytes rewrites a layer's weights in place (scales rounded to bfloat16) the first
    time it runs in eval mode, and computes with them outside autograd from then on: the frozen reference moves, and
    gradients stop at the layer, without a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def paged_adamw_8bit(parameters: Iterable[nn.Parameter], config: PPOConfig) -> torch.optim.Optimizer:
    """AdamW on ``parameters`` with 8-bit states in memory that the GPU pages out under pressure (Dettmers et al. 2022),
    with the learning rate and weight decay of ``config``: ``PPOTrainer(..., optimizer=paged_adamw_8bit)``.

    The states are made here. In a run that is resumed they lie on the GPU: bitsandbytes restores them there, not in
    pages.

    Raises:
        ValueError: a parameter is not on a CUDA device, the only place where its pages can go.
        MemoryError: there is no room for the states.
    """
    trained = list(parameters)
    elsewhere = {str(parameter.device) for parameter in trained if parameter.device.type != "cuda"}
    if elsewhere:
        raise ValueError(f"paged_adamw_8bit needs its parameters on a CUDA device, got {', '.join(sorted(elsewhere))}")
    kind = importlib.import_module("bitsandbytes.optim").PagedAdamW8bit
    made: Any = kind(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    try:
        _make_states(made)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(
            "paged_adamw_8bit: out of memory while it makes its states, two bytes or more for every trained number. "
            'Train fewer with lora, load the models with four_bit=True or dtype="bfloat16", or free memory that others '
            "hold"
        ) from error
    return cast(torch.optim.Optimizer, made)


def _make_states(optimizer: Any) -> None:
    """Make all states now. bitsandbytes makes each just before its parameter moves, so memory that runs out would leave
    a step half done."""
    for place, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            optimizer.state[parameter] = {}
            optimizer.init_state(group, parameter, place, number)


def _import_bitsandbytes() -> None:
    """Import bitsandbytes without letting it fetch code. Runs when this module is imported.

    On CPUs with AVX512-BF16 its import downloads a compiled kernel from the hub if the package ``kernels`` is there,
    and logs advice to install that if not; either way it has its own. PEFT imports it wherever it can, and
    transformers' Trainer imports PEFT. So ``kernels`` is hidden, the hub offline and the advice silenced meanwhile.
    """
    if "bitsandbytes" in sys.modules:
        return
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hidden = logger.level, sys.modules.get("kernels", _ABSENT)
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        with _hub_offline():
            import bitsandbytes  # noqa: F401
    finally:
        logger.setLevel(level)
        if hidden is _ABSENT:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = hidden


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Nothing is fetched inside: huggingface_hub has read the variable already, whatever is imported now has not."""
    constant, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


_import_bitsandbytes()  # before anything else imports PEFT
