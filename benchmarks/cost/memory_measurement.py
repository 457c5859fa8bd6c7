"""Measure a PPO step on a GPU phase by phase, to compare with the memory prediction.

The step is made of the project's own pieces: ``CausalPolicy``, ``ClassifierReward`` and ``PPOTrainer``. Where both
models are local folders with weights, those are loaded; otherwise both get random weights of the right shape. Every row
is as long as the settings allow, EOS being banned.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from transformers import PreTrainedConfig

from benchmarks.cost.architectures import lora_of, precision_of, random_models, score_kind
from benchmarks.cost.memory_prediction import packed
from benchmarks.cost.memory_settings import MemorySettings
from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.tiny import EOS_ID
from models.weights.four_bit import paged_adamw_8bit
from redistributors import DecoderAttention, RewardAttention, Sparse
from rlhf_core.batching import SmallerParts, micro_batches
from rlhf_core.config import PPOConfig
from rlhf_core.optimizer import make_optimizer
from rlhf_core.rollout import Draw, sample
from rlhf_core.trainer import PPOTrainer

SHARED = ("rollout_batch_size", "minibatch_size", "micro_batch_tokens", "sampling_tokens")
"""Settings that have the same name in the PPO configuration."""


@runtime_checkable
class Meter(Protocol):
    """Something that watches the memory of a device, in bytes."""

    def reset(self) -> None:
        """Forget the peak so far."""
        ...

    def peak(self) -> int:
        """The most that tensors took at one time since ``reset``."""
        ...

    def held(self) -> int:
        """The most that the allocator has taken from the device so far."""
        ...


@final
class CudaMeter:
    """Torch's own count; what the allocator takes beside tensors is fragments and caches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = 0

    def reset(self) -> None:
        """Forget the peak so far."""
        self._held = self.held()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """``max_memory_allocated``."""
        return torch.cuda.max_memory_allocated(self._device)

    def held(self) -> int:
        """``max_memory_reserved`` over all phases."""
        return max(self._held, torch.cuda.max_memory_reserved(self._device))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Peak bytes of each phase as a meter saw them, and what the allocator held; the CUDA context is in neither."""

    peaks: Mapping[str, int]
    held: int


@contextmanager
def capped(device: torch.device, limit: float) -> Iterator[float]:
    """Inside the block torch may take at most ``limit`` bytes of the device, or less on a smaller card; yields how
    many."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        yield min(limit, total)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measure_step(
    settings: MemorySettings, policy: PreTrainedConfig, reward: PreTrainedConfig, meter: Meter, device: torch.device
) -> Measurement:
    """Load, take one step so that the optimizer has its states, then measure each phase of a second.

    Raises:
        MemoryError: a phase ran out of memory; names it.
        ValueError: a reward model that does not know all of the policy's token ids.
    """
    peaks: dict[str, int] = {}
    with _phase("load", meter, peaks):
        trainer = make_trainer(settings, policy, reward, device)
    size = (settings.rollout_batch_size, settings.prompt_tokens)
    prompts: list[list[int]] = torch.randint(
        EOS_ID + 1, policy.vocab_size, size, generator=torch.Generator().manual_seed(0)
    ).tolist()
    with _phase("first step", meter, {}):
        trainer.step(prompts)
    of_policy = frozenset(need for need in trainer.redistributor.needs if need.source != "reward")
    with _phase("sample", meter, peaks):
        sequences = sample(trainer.policy, prompts, trainer.config, Draw(seed=0, name="sampling", step=1))
    parts = [sequences.select(rows) for rows in micro_batches(sequences, settings.micro_batch_tokens)]
    with _phase("old log-probs", meter, peaks), torch.no_grad():
        for part in parts:
            trainer.policy.evaluate(part, of_policy, temperature=trainer.config.temperature)
    with _phase("reference", meter, peaks):
        for part in parts:
            trainer.policy.reference_logprobs(part, temperature=trainer.config.temperature)
    with _phase("reward", meter, peaks):
        trainer.reward.score(sequences, trainer.redistributor.needs - of_policy)
    rollout = trainer.collect(prompts)
    experience = trainer.estimate_returns(rollout, trainer.redistribute(rollout))
    with _phase("update", meter, peaks):
        trainer.update(experience)
    return Measurement(peaks=peaks, held=meter.held())


@contextmanager
def _phase(name: str, meter: Meter, peaks: dict[str, int]) -> Iterator[None]:
    """Record the peak of what happens inside under ``name``."""
    meter.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SmallerParts)  # a step that shrank would fit by another measure
            yield
    except (torch.OutOfMemoryError, MemoryError, SmallerParts) as error:
        raise MemoryError(f"measuring ran out of memory in the phase {name!r}: {error}") from error
    peaks[name] = meter.peak()


def make_trainer(
    settings: MemorySettings, policy: PreTrainedConfig, reward: PreTrainedConfig, device: torch.device
) -> PPOTrainer:
    """Policy, reward model and the redistributor whose evidence is asked for, under the settings' PPO configuration."""
    real = all(any(Path(name).glob("*.safetensors")) for name in (settings.policy, settings.reward))
    models = _loaded(settings, reward, device) if real else random_models(settings, policy, reward, device)
    redistributor = {"none": Sparse, "reward": RewardAttention, "decoder": DecoderAttention}[settings.evidence]()
    shared: dict[str, Any] = {name: getattr(settings, name) for name in SHARED}
    n = settings.response_tokens
    config = PPOConfig.from_paper(
        "positive_generation", **shared, epochs=1, min_length=n, max_length=(n, n), first_step_checks="warn"
    )
    optimizer = paged_adamw_8bit if settings.optimizer == "paged_adamw_8bit" else make_optimizer
    return PPOTrainer(*models, redistributor, config, optimizer=optimizer)


def _loaded(
    settings: MemorySettings, reward: PreTrainedConfig, device: torch.device
) -> tuple[CausalPolicy, ClassifierReward]:
    """Trained models from their folders."""
    autocast, sampled = precision_of(settings)
    policy = load_policy(
        settings.policy,
        lora=lora_of(settings),
        four_bit=packed(settings, "policy"),
        dtype=settings.dtype,
        autocast=autocast,
        sampling_dtype=sampled,
        device=str(device),
        gradient_checkpointing=settings.gradient_checkpointing,
        critic=settings.critic,
        critic_model=settings.reward if settings.critic == "model" else None,
    )
    return policy, load_reward_model(
        settings.reward,
        score=score_kind(reward),
        four_bit=packed(settings, "reward"),
        dtype=settings.dtype,
        device=str(device),
        micro_batch_tokens=settings.reward_micro_batch_tokens,
    )
