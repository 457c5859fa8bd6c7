"""Language models as policies and as reward models: ``load_policy`` and ``load_reward_model`` are the ways in.

Whatever is named here is public; the rest is private to its room.
"""

from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.ensemble import RewardEnsemble, load_reward_ensemble
from models.rewards.loading import load_reward_model
from models.rewards.prompted_reward import PromptedReward
from models.rewards.retokenised import RetokenisedReward
from models.texts.retokenising import Telling
from models.tiny import save_tiny
from models.training.supervised import TrainingSettings
from models.weights.adapters import LoraSettings
from models.weights.four_bit import paged_adamw_8bit

__all__ = [
    "CausalPolicy",
    "ClassifierReward",
    "LoraSettings",
    "PromptedReward",
    "RetokenisedReward",
    "RewardEnsemble",
    "Telling",
    "TrainingSettings",
    "load_policy",
    "load_reward_ensemble",
    "load_reward_model",
    "paged_adamw_8bit",
    "save_tiny",
]
