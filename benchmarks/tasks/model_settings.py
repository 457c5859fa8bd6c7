"""How a task's models are loaded: one group of settings for every task and script."""

from dataclasses import dataclass, field
from typing import Literal

from models.weights.dtype_names import DType
from models.weights.lora_settings import LoraSettings


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Precision, adapters and place of policy and reward model."""

    device: str = "cpu"
    """"cuda" on a GPU."""
    dtype: DType = "float32"
    """Weights and activations; whole models are trained in float32 only."""
    four_bit: bool = False
    """Frozen weights of policy and reward model in NF4 with double quantisation; needs lora."""
    lora: LoraSettings | None = None
    """Train an adapter on the frozen policy; null trains all weights (or the adapter that the policy is)."""
    gradient_checkpointing: bool = False
    """Recompute the policy's activations in the backward pass."""
    optimizer: Literal["torch", "paged_adamw_8bit"] = "torch"
    """PPO's own choice (--ppo.optimizer), or bitsandbytes' paged 8-bit AdamW (CUDA only)."""
    auxiliaries: dict[str, str] = field(default_factory=dict)
    """Further frozen models of the policy by name (a folder or hub name each), for redistributors that ask for them."""
    reward_tokens: int = 4096
    """Tokens of one forward pass of the reward model, padding included."""
