"""Language models as policies and as reward models."""

from models.adapters import LoraSettings
from models.load import load_policy
from models.policy import CausalPolicy
from models.reward import ClassifierReward, load_reward_model
from models.training import TrainingSettings

__all__ = [
    "CausalPolicy",
    "ClassifierReward",
    "LoraSettings",
    "TrainingSettings",
    "load_policy",
    "load_reward_model",
]
