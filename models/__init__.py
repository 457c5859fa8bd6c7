"""Language models as policies and as reward models."""

from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward, load_reward_model
from models.rewards.ensemble import RewardEnsemble, load_reward_ensemble
from models.rewards.retokenised import RetokenisedReward
from models.texts.retelling import Telling
from models.training.supervised import TrainingSettings
from models.weights.adapters import LoraSettings

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
