"""The settings of a LoRA adapter (Hu et al. 2021); this file imports no model library, so a command line is quick."""

from dataclasses import dataclass
from typing import Literal

from rlhf_core.names import naming_nearest, nearest

ALL_LINEAR: Literal["all-linear"] = "all-linear"


@naming_nearest(
    {
        **dict.fromkeys(("r", "lora_r"), "rank"),
        **dict.fromkeys(("lora_alpha", "scale"), "alpha"),
        **dict.fromkeys(("modules", "target_module", "layers"), "target_modules"),
        **dict.fromkeys(("dropout", "lora_dropout"), "rank (dropout is always 0)"),
    }
)
@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """A fresh low-rank adapter; the update of a weight is alpha / rank · B A. Dropout is always 0, because with dropout
    training would evaluate another policy than the one that was sampled.

    Raises:
        TypeError: an unknown setting, with the one that may have been meant.
        ValueError: a rank or alpha that is not a positive whole number, or target modules that are not names.
    """

    rank: int = 32
    """Rank of A and B (paper: 32)."""
    alpha: int = 32
    """Scale (paper: 32)."""
    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None
    """Names of the modules to adapt, or "all-linear": every linear layer but the head. None is PEFT's default for the
    architecture (the paper's choice), and "all-linear" for one that PEFT has none for. Experts and router that a
    mixture holds as tensors without a layer are adapted by "all-linear" where PEFT knows the architecture (Mixtral,
    Qwen3-MoE), and stay as they are elsewhere (gpt-oss)."""

    def __post_init__(self) -> None:
        if not all(type(number) is int and number >= 1 for number in (self.rank, self.alpha)):
            raise ValueError(
                f"LoraSettings: rank and alpha must be positive whole numbers, got {self.rank!r} and {self.alpha!r}"
            )
        modules = self.target_modules
        if modules not in (None, ALL_LINEAR) and not (
            isinstance(modules, tuple | list) and modules and all(isinstance(name, str) for name in modules)
        ):
            raise ValueError(
                f"LoraSettings: target_modules must be names of modules, {ALL_LINEAR!r} or None, got {modules!r}"
                f"{nearest(modules, [ALL_LINEAR])}"
            )
