"""Language models as policies and as reward models."""

from models.adapters import LoraSettings
from models.ensemble import RewardEnsemble, load_reward_ensemble
from models.load import load_policy
from models.policy import CausalPolicy
from models.retokenised import RetokenisedReward
from models.reward import ClassifierReward, load_reward_model
from models.telling import Telling
from models.training import TrainingSettings

__all__ = [
    "CausalPolicy",
    "ClassifierReward",
    "LoraSettings",
    "RetokenisedReward",
    "RewardEnsemble",
    "Telling",
    "TrainingSettings",
    "load_policy",
    "load_reward_ensemble",
    "load_reward_model",
]
