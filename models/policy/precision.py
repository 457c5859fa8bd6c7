"""The precision of a policy's passes: what products are computed in, and what is sampled from."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch

from models.weights.dtype_names import Autocast, DType
from models.weights.four_bit import stored_quantisation
from models.weights.safe_files import read_settings
from models.weights.source import DTYPES, OTHER_WORDS, ModelSource
from rlhf_core.names import nearest


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What differs from computing everything in the weights' own precision; raises ValueError for an unknown name."""

    autocast: Autocast | None = None
    """What float32 weights are multiplied in; None: float32."""
    sampling_dtype: DType | None = None
    """What 4-bit weights are held in, a second time, to sample from; None: they are sampled from as they are."""

    def __post_init__(self) -> None:
        _require_known("autocast", self.autocast, get_args(Autocast))
        _require_known("sampling_dtype", self.sampling_dtype, get_args(DType))

    @property
    def identity(self) -> Mapping[str, object]:
        """What the policy's identity says of it: nothing of settings that are left out."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def passes(self, device: torch.device) -> AbstractContextManager[Any]:
        """Inside the block, passes on ``device`` compute as asked. A backward pass follows its forward pass, and is
        made outside."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, DTYPES[self.autocast])


def check_precision(precision: Precision, source: ModelSource, *, trains_all: bool) -> None:
    """Refuse autocast where it has nothing to do, or cannot be, before any weights are read.

    Raises:
        ValueError: an adapter is trained, or the card has no bfloat16.
    """
    if precision.autocast is None:
        return
    asked = f"autocast={precision.autocast!r} multiplies float32 weights, all of which are trained, in bfloat16"
    if not trains_all:
        raise ValueError(
            f"{asked}, and {source.name_or_path} is trained through an adapter: leave it out and give "
            "dtype='bfloat16', which holds the frozen weights in bfloat16 and computes in it"
        )
    if torch.device(source.device).type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{asked}, which {torch.cuda.get_device_name(source.device)} cannot: leave it out")


def check_sampling_dtype(precision: Precision, base: ModelSource) -> None:
    """Refuse a copy to sample from beside weights that are not in 4 bits.

    Raises:
        ValueError: they are not.
    """
    if precision.sampling_dtype is None or base.four_bit:
        return
    name = base.name_or_path
    if stored_quantisation(name, read_settings(name, "config.json", base.revision)) is None:
        raise ValueError(
            f"sampling_dtype={precision.sampling_dtype!r} holds 4-bit weights a second time to sample from, and "
            f"{name} is loaded in {base.dtype}: give four_bit=True, or leave sampling_dtype out"
        )


def _require_known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, known))} or None, got {value!r}"
            f"{nearest(value, known, OTHER_WORDS)}"
        )
