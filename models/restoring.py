"""Weights read back into a network that is there already, to the bit; nothing else of it changes."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from models.adapter_weights import WEIGHTS, trained_state
from models.reference import TRAINED


@torch.no_grad()
def restore_model(lm: PreTrainedModel, folder: str) -> None:
    """All weights of a whole model, from what its ``save_pretrained`` wrote.

    Raises:
        ValueError: weights are missing, or of another shape.
    """
    loaded: Any = type(lm).from_pretrained(folder, dtype=lm.dtype, use_safetensors=True, output_loading_info=True)
    saved, loading = loaded
    if loading["missing_keys"]:
        raise ValueError(f"{folder} lacks weights of {type(lm).__name__}: {sorted(loading['missing_keys'])[:5]}")
    found = dict(saved.named_parameters())
    for name, parameter in lm.named_parameters():
        if name not in found or found[name].shape != parameter.shape:
            shape = tuple(found[name].shape) if name in found else None
            raise ValueError(f"{folder}: {name} has shape {shape}, the policy's has {tuple(parameter.shape)}")
        parameter.copy_(found[name])


def restore_adapter(adapters: Any, folder: str, *, carries: bool = False) -> None:
    """The trained adapter, from what ``save_adapter`` wrote.

    Raises:
        ValueError: the file holds another adapter.
    """
    from peft import set_peft_model_state_dict

    weights = load_file(Path(folder, WEIGHTS))
    wanted = trained_state(adapters, carries=carries)
    differing = sorted(
        name
        for name in weights.keys() | wanted.keys()
        if name not in weights or name not in wanted or weights[name].shape != wanted[name].shape
    )
    if differing:
        raise ValueError(f"{folder} holds another adapter than the policy trains; they differ in {differing[:3]}")
    set_peft_model_state_dict(adapters, weights, adapter_name=TRAINED)
