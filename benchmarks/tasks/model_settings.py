"""How a task's models are loaded: one group of settings for every task and script."""

from dataclasses import dataclass, field
from typing import Literal

from models.policy.critic_names import CriticKind
from models.weights.dtype_names import Autocast, DType
from models.weights.lora_settings import LoraSettings


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Precision, adapters and place of policy and reward model."""

    device: str = "cpu"
    """"cuda" on a GPU."""
    reward_device: str | None = None
    """Device of the reward model, such as "cuda:1" or "cpu"; null: the policy's."""
    dtype: DType = "float32"
    """Weights and activations; whole models are trained in float32 only."""
    autocast: Autocast | None = None
    """What the float32 weights of a policy that is trained whole are multiplied in, and its critic's; null: float32."""
    tf32: bool = False
    """Let a card multiply float32 matrices in TF32, for both models."""
    four_bit: bool = False
    """Frozen weights of policy and reward model in NF4 with double quantisation; needs lora."""
    sampling_dtype: DType | None = None
    """Hold the policy's 4-bit weights a second time in this precision, and sample from that; null: from 4 bits."""
    lora: LoraSettings | None = None
    """Train an adapter on the frozen policy; null trains all weights (or the adapter that the policy is)."""
    gradient_checkpointing: bool = False
    """Recompute the policy's activations, and its critic's, in the backward pass."""
    compile_decoding: bool = False
    """Compile the step that samples a token (torch.compile), on a GPU as a CUDA graph; same tokens up to rounding."""
    critic: CriticKind = "shared"
    """Where values come from: a head on the policy's trunk; an adapter beside the policy's, which must be one; or a
    model of its own, which is trained whole."""
    critic_model: str | None = None
    """The critic's own model, folder or hub name of a reward model or language model; null: the task's reward model."""
    optimizer: Literal["torch", "paged_adamw_8bit"] = "torch"
    """PPO's own choice (--ppo.optimizer), or bitsandbytes' paged 8-bit AdamW (CUDA only)."""
    auxiliaries: dict[str, str] = field(default_factory=dict)
    """Further frozen models of the policy by name (a folder or hub name each), for redistributors that ask for them."""
    reward_tokens: int = 4096
    """Tokens of one forward pass of the reward model, padding included."""

    def __post_init__(self) -> None:
        if self.tf32 and self.device == "cpu":
            raise ValueError("tf32 changes nothing on device 'cpu', which multiplies in float32: leave it out")
        if self.critic_model is not None and self.critic != "model":
            raise ValueError(f"critic_model {self.critic_model!r} needs critic 'model', and critic is {self.critic!r}")
