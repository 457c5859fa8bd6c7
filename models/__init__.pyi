from .policy.causal_policy import CausalPolicy
from .policy.loading import load_policy
from .policy.publishing import Pushed, push_to_hub
from .rewards.classifier_reward import ClassifierReward
from .rewards.ensemble import RewardEnsemble, load_reward_ensemble
from .rewards.loading import load_reward_model
from .rewards.process_loading import load_process_reward_model
from .rewards.process_reward import ProcessReward
from .rewards.prompted_reward import PromptedReward
from .rewards.retokenised import RetokenisedReward
from .texts.retokenising import Telling
from .tiny import save_tiny
from .training.settings import TrainingSettings
from .weights.four_bit import paged_adamw_8bit
from .weights.lora_settings import LoraSettings

__all__ = [
    "CausalPolicy",
    "ClassifierReward",
    "LoraSettings",
    "ProcessReward",
    "PromptedReward",
    "Pushed",
    "RetokenisedReward",
    "RewardEnsemble",
    "Telling",
    "TrainingSettings",
    "load_policy",
    "load_process_reward_model",
    "load_reward_ensemble",
    "load_reward_model",
    "paged_adamw_8bit",
    "push_to_hub",
    "save_tiny",
]
