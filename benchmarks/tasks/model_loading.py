"""Policies, reward models and optimizers, held as a task's ``Loading`` says."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.tasks.model_settings import Loading
from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.rewards.score_names import ScoreKind
from models.weights.four_bit import paged_adamw_8bit
from rlhf_core.config import PPOConfig
from rlhf_core.optimizer import make_optimizer

OPTIMIZERS: dict[str, Callable[[Iterable[torch.nn.Parameter], PPOConfig], torch.optim.Optimizer]] = {
    "torch": make_optimizer,
    "paged_adamw_8bit": paged_adamw_8bit,
}


def held_policy(loading: Loading, name: str) -> CausalPolicy:
    """Load a policy; raises as :func:`models.load_policy` does."""
    trained: dict[str, Any] = {"lora": loading.lora, "gradient_checkpointing": loading.gradient_checkpointing}
    return load_policy(name, **trained, **_held(loading), auxiliaries=loading.auxiliaries)


def held_reward(
    loading: Loading, name: str, score: ScoreKind | None = None, label: str | None = None
) -> ClassifierReward:
    """Load a reward model; raises as :func:`models.load_reward_model` does."""
    return load_reward_model(name, score=score, label=label, micro_batch_tokens=loading.reward_tokens, **_held(loading))


def _held(loading: Loading) -> dict[str, Any]:
    """How the weights of both models are held."""
    return {"four_bit": loading.four_bit, "dtype": loading.dtype, "device": loading.device}


def optimizer_maker(loading: Loading) -> Callable[[Iterable[torch.nn.Parameter], PPOConfig], Any]:
    """The optimizer that ``loading`` asks for, as the trainer takes it."""
    return OPTIMIZERS[loading.optimizer]
