"""How a task's models are held: one group of settings for every task and script."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.rewards.score_kinds import ScoreKind
from models.weights.adapters import LoraSettings
from models.weights.four_bit import paged_adamw_8bit
from models.weights.source import DType
from rlhf_core.config import PPOConfig
from rlhf_core.optimizer import make_optimizer

OPTIMIZERS: dict[str, Callable[[Iterable[torch.nn.Parameter], PPOConfig], torch.optim.Optimizer]] = {
    "torch": make_optimizer,
    "paged_adamw_8bit": paged_adamw_8bit,
}


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

    def policy(self, name: str) -> CausalPolicy:
        """Load a policy; raises as :func:`models.load_policy` does."""
        trained: dict[str, Any] = {"lora": self.lora, "gradient_checkpointing": self.gradient_checkpointing}
        return load_policy(name, **trained, **self._held, auxiliaries=self.auxiliaries)

    def reward(self, name: str, score: ScoreKind) -> ClassifierReward:
        """Load a reward model; raises as :func:`models.load_reward_model` does."""
        return load_reward_model(name, score=score, micro_batch_tokens=self.reward_tokens, **self._held)

    @property
    def _held(self) -> dict[str, Any]:
        """How the weights of both models are held."""
        return {"four_bit": self.four_bit, "dtype": self.dtype, "device": self.device}

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter], config: PPOConfig) -> Any:
        """The optimizer asked for."""
        return OPTIMIZERS[self.optimizer](parameters, config)
