"""4-bit weights: NormalFloat with double quantisation (Dettmers et al. 2023, "QLoRA"), through bitsandbytes."""

import importlib
import importlib.util
import logging
import sys
from types import ModuleType

import torch
from torch import nn
from transformers import BitsAndBytesConfig

_ABSENT = ModuleType("absent")


def four_bit_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation; matrix products are computed in ``compute_dtype``.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            "4-bit loading needs bitsandbytes, which is not installed: pip install dense-rlhf[quantization]"
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_unpacked(model: nn.Module) -> None:
    """Switch off the CPU inference format of 4-bit layers; to be called before their first forward pass.

    On CPUs with AVX512-BF16, bitsandbytes rewrites a layer's weights in place (scales rounded to bfloat16) the first
    time it runs in eval mode, and computes with them outside autograd from then on: the frozen reference moves, and
    gradients stop at the layer without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def import_bitsandbytes() -> None:
    """Import bitsandbytes, where installed, without letting it fetch code. Runs when this module is imported.

    On CPUs with AVX512-BF16 its import downloads a compiled kernel from the hub if the package ``kernels`` is there,
    and logs advice to install that if not; either way it has its own. PEFT imports it wherever it can, and
    transformers' Trainer imports PEFT. So ``kernels`` is hidden and the advice silenced meanwhile.
    """
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hidden = logger.level, sys.modules.get("kernels", _ABSENT)
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(level)
        if hidden is _ABSENT:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = hidden


import_bitsandbytes()  # before anything else imports PEFT
