"""A trainer on a table of probabilities, and a method that learns."""

from dataclasses import dataclass, field

import torch
from fakes import TablePolicy

from redistributors import Uniform
from rlhf_core import (
    KLConfig,
    PPOConfig,
    PPOTrainer,
    Rollout,
    TokenReward,
)

PROMPTS = [[1], [2, 3], [4, 5, 1], [5]]


CONFIG = PPOConfig.from_paper(
    "positive_generation",
    learning_rate=0.05,
    minibatch_size=8,
    min_length=2,
    max_length=(4, 8),
    kl=KLConfig(init_coef=0.01),
    epochs=2,
)


def share_of_threes(prompts, responses):
    return [row.count(3) / len(row) for row in responses]


def trainer(redistributor=None, config=CONFIG, reward=None, policy=None):
    reward = reward or TokenReward(share_of_threes)
    return PPOTrainer(policy or TablePolicy(), reward, redistributor or Uniform(), config)


def batch(n=16):
    return [PROMPTS[i % len(PROMPTS)] for i in range(n)]


@dataclass
class Learner:
    """A redistributor that counts what it has seen."""

    seen: int = 0
    needs: frozenset = field(default_factory=frozenset)
    causal: bool = False
    conserving: bool = True

    def __call__(self, rollout: Rollout) -> torch.Tensor:
        return Uniform()(rollout)

    def observe(self, rollout: Rollout) -> None:
        self.seen += len(rollout.sequences)

    def state(self) -> dict[str, torch.Tensor]:
        return {"seen": torch.tensor(self.seen)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.seen = int(state["seen"])

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        return {"seen": float(self.seen)}
