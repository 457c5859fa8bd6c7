"""Fingerprints of what must never move."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.policy.causal_policy import CausalPolicy
from models.weights.reference import TRAINED


def frozen_hashes(policy: CausalPolicy) -> dict[str, str]:
    """SHA-256 of every frozen tensor of a policy by name: the base under an adapter with its buffers and 4-bit states,
    the frozen reference adapter, or, under full fine-tuning, the reference's copy. The trained adapter is left out."""
    tensors = _tensors(policy._network.reference.lm)
    return {name: _sha256(tensor) for name, tensor in tensors if TRAINED not in name.split(".")}


def _tensors(lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from lm.named_buffers()
    for name, parameter in lm.named_parameters():
        yield name, parameter
        if (state := getattr(parameter, "quant_state", None)) is not None:
            for part, value in state.as_dict().items():
                yield f"{name}.{part}", torch.as_tensor(value if not isinstance(value, str) else list(value.encode()))


def _sha256(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
