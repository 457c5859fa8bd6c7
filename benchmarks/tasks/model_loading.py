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
from rlhf_core.tf32 import allow_tf32

OPTIMIZERS: dict[str, Callable[[Iterable[torch.nn.Parameter], PPOConfig], torch.optim.Optimizer]] = {
    "torch": make_optimizer,
    "paged_adamw_8bit": paged_adamw_8bit,
}


def held_policy(loading: Loading, name: str, *, reward: str | None) -> CausalPolicy:
    """Load a policy, whose critic may start from the task's ``reward`` model; None where that is a function. From then
    on this process multiplies in TF32 if ``loading`` says so.

    Raises:
        ValueError: TF32 on a card without it, and as :func:`models.load_policy` does.
    """
    if loading.tf32 and not allow_tf32():
        raise ValueError(f"tf32: no card here has it, and device is {loading.device!r}; leave it out")
    trained: dict[str, Any] = {
        "lora": loading.lora,
        "gradient_checkpointing": loading.gradient_checkpointing,
        "compile_decoding": loading.compile_decoding,
    }
    precision: dict[str, Any] = {"autocast": loading.autocast, "sampling_dtype": loading.sampling_dtype}
    critic: dict[str, Any] = {"critic": loading.critic, "critic_model": critic_model(loading, reward)}
    return load_policy(name, **trained, **precision, **critic, **_held(loading), auxiliaries=loading.auxiliaries)


def critic_model(loading: Loading, reward: str | None) -> str | None:
    """Folder or hub name of the model that the critic starts from; None for one that has no model of its own.

    Raises:
        ValueError: nothing names one, and the reward is a function.
    """
    if loading.critic != "model":
        return None
    if (loading.critic_model or reward) is None:
        raise ValueError(
            "critic 'model' starts from the reward model, and the reward is a function: name a reward model or a "
            "language model with the policy's tokenizer, as --loading.critic_model"
        )
    return loading.critic_model or reward


def held_reward(
    loading: Loading, name: str, score: ScoreKind | None = None, label: str | None = None
) -> ClassifierReward:
    """Load a reward model; raises as :func:`models.load_reward_model` does."""
    held = _held(loading) | {"device": loading.reward_device or loading.device}
    return load_reward_model(name, score=score, label=label, micro_batch_tokens=loading.reward_tokens, **held)


def _held(loading: Loading) -> dict[str, Any]:
    """How the policy's weights are held; the reward model's are, too, unless it has a device of its own."""
    return {"four_bit": loading.four_bit, "dtype": loading.dtype, "device": loading.device}


def optimizer_maker(loading: Loading) -> Callable[[Iterable[torch.nn.Parameter], PPOConfig], Any]:
    """The optimizer that ``loading`` asks for, as the trainer takes it."""
    return OPTIMIZERS[loading.optimizer]
