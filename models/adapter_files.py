"""What an adapter's file must hold: all of the adapter, nothing else, and numbers that count."""

import re
from pathlib import Path
from typing import Any

from models.intact import require_finite_weights, some
from rlhf_core.tensors import read_tensors, require_finite

WEIGHTS = "adapter_model.safetensors"


def require_whole_adapter(folder: str, adapters: Any, *, name: str) -> None:
    """Compare the adapter ``name``, just loaded from ``folder``, with its file: PEFT draws at random what the file
    lacks, and leaves out what it has no place for.

    Raises:
        ValueError: naming weights that are missing, left over, no fractions or not finite.
    """
    from peft import set_peft_model_state_dict

    file = Path(folder, WEIGHTS)
    weights = read_tensors(file)
    whole = sorted(key for key, tensor in weights.items() if not tensor.is_floating_point())
    if whole:
        raise ValueError(f"{file}: {some(whole)} holds whole numbers, where a weight is expected")
    require_finite(str(file), weights)
    account: Any = set_peft_model_state_dict(
        adapters, weights, adapter_name=name
    )  # once more, for PEFT's account of it
    own = re.compile(rf"(lora_\w+|modules_to_save|trainable_tokens\w*)\.{re.escape(name)}(\.|$)")
    missing = sorted(key for key in account.missing_keys if own.search(key))
    if missing:
        raise ValueError(f"{file} lacks {some(missing)}, which would be random; train and save the adapter again")
    if account.unexpected_keys:
        raise ValueError(
            f"{file} holds {some(sorted(account.unexpected_keys))}, for which its adapter_config.json has no place; "
            "it would not be the adapter that was saved"
        )
    require_finite_weights(folder, adapters)
