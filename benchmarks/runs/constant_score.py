"""A task with a constant score: every response gets the same score, but evidence still comes from the reward model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.runs.single_run import Task
from benchmarks.tasks.loaded import Loaded
from benchmarks.tasks.model_settings import Loading
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.scorers.callables import as_reward_model
from rlhf_core.types import RewardModel, Scored, Sequences

OPTIONAL = ("why_not", "validate", "validate_columns", "vocabulary", "vocab_size")
"""What a reward model may say of itself."""


@dataclass(frozen=True, kw_only=True)
class ConstantScore:
    """A reward model that answers every request as ``reward`` does and gives every response the score ``value``.

    It has of ``OPTIONAL`` what ``reward`` has, so that it is refused where ``reward`` would be.
    """

    reward: RewardModel
    value: float

    def __post_init__(self) -> None:
        for name in OPTIONAL:  # attributes that exist only where the reward model has them: the engine asks if they do
            if hasattr(self.reward, name):
                object.__setattr__(self, name, getattr(self.reward, name))

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """``value`` for every row, in the score's units, and the evidence of the reward model within."""
        if not needs:  # what is not looked at is not computed
            return Scored(scores=torch.full((len(sequences),), self.value), evidence={})
        scored = self.reward.score(sequences, needs)
        return replace(scored, scores=torch.full_like(scored.scores, self.value))

    def provides(self, request: EvidenceRequest) -> bool:
        """What the reward model within provides."""
        return self.reward.provides(request)


@dataclass(frozen=True)
class ConstantTask:
    """``task``'s prompts and models, every response worth ``value``: the true gradient of the score is zero."""

    task: Task
    value: float

    @property
    def loading(self) -> Loading:
        """The task's."""
        return self.task.loading

    @property
    def ppo(self) -> Mapping[str, Any]:
        """The task's."""
        return self.task.ppo

    def load(self) -> Loaded:
        """Read the task's models; raises as it does."""
        loaded = self.task.load()
        reward = ConstantScore(reward=as_reward_model(loaded.reward, loaded.policy), value=self.value)
        return replace(loaded, reward=reward, gold=None, contributions=None)  # there is no true score here
