"""Whether passes that compute the same may differ by more than the rounding of float32."""

import torch
from transformers import PreTrainedModel

from rlhf_core.tf32 import multiplies_in_tf32


def rounds_coarsely(model: PreTrainedModel) -> bool:
    """Whether ``model`` computes with less than float32: weights in bfloat16 or 4 bits, autocast, or TF32 on a card."""
    kind = model.device.type
    return (
        model.dtype not in (torch.float32, torch.float64)
        or bool(getattr(model, "is_quantized", False))
        or torch.is_autocast_enabled(kind)
        or (kind == "cuda" and multiplies_in_tf32())
    )
