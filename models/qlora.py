"""4-bit weights: NormalFloat with double quantisation (Dettmers et al. 2023, "QLoRA"), through bitsandbytes."""

import importlib
import importlib.util
import logging
import sys
from types import ModuleType

import torch
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
    import_bitsandbytes()
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def import_bitsandbytes() -> None:
    """Import bitsandbytes, where installed, without letting it fetch code.

    On CPUs with AVX512-BF16 its import downloads a compiled kernel from the hub if the package ``kernels`` is there,
    and logs advice to install that if not; either way it then has its own. PEFT imports bitsandbytes for any LoRA
    layer. So ``kernels`` is hidden and the advice silenced meanwhile.
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
