from .buffer import RolloutBuffer
from .checks import HealthError
from .config import KLConfig, PPOConfig, ScoreConfig
from .estimators.leave_one_out import leave_one_out_advantages
from .evidence import (
    AttentionTap,
    ColumnTap,
    ContinuationValues,
    EvidenceRequest,
    FullKL,
    HiddenTap,
    Layout,
    PrefixScores,
)
from .kl import AdaptiveKL, FixedKL, kl_estimate
from .losses import policy_loss, value_loss
from .masking import masked_mean, masked_var, masked_whiten
from .probe import Experiment, Probe, Variants
from .returns import discounted_returns, generalized_advantages, lambda_returns
from .reward_per_token import token_rewards
from .run.freed_memory import keep_freed_memory
from .run.loggers import JSONLines, Logger, TensorBoard, WeightsAndBiases
from .scorers.callables import TextReward, TokenReward
from .scorers.token_scorer import PerTokenReward, SpanReward
from .step_guard import Diverged, UnusableRollout
from .tf32 import allow_tf32
from .trainer import PPOTrainer
from .types import (
    Evaluation,
    Experience,
    Learns,
    Limits,
    Policy,
    Redistributor,
    ReportsMetrics,
    RewardModel,
    Rollout,
    SaysWhyNot,
    Scored,
    Sequences,
)
from .update import ppo_update

__version__: str

__all__ = [
    "AdaptiveKL",
    "AttentionTap",
    "ColumnTap",
    "ContinuationValues",
    "Diverged",
    "Evaluation",
    "EvidenceRequest",
    "Experience",
    "Experiment",
    "FixedKL",
    "FullKL",
    "HealthError",
    "HiddenTap",
    "JSONLines",
    "KLConfig",
    "Layout",
    "Learns",
    "Limits",
    "Logger",
    "PPOConfig",
    "PPOTrainer",
    "PerTokenReward",
    "Policy",
    "PrefixScores",
    "Probe",
    "Redistributor",
    "ReportsMetrics",
    "RewardModel",
    "Rollout",
    "RolloutBuffer",
    "SaysWhyNot",
    "ScoreConfig",
    "Scored",
    "Sequences",
    "SpanReward",
    "TensorBoard",
    "TextReward",
    "TokenReward",
    "UnusableRollout",
    "Variants",
    "WeightsAndBiases",
    "allow_tf32",
    "discounted_returns",
    "generalized_advantages",
    "keep_freed_memory",
    "kl_estimate",
    "lambda_returns",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "policy_loss",
    "ppo_update",
    "token_rewards",
    "value_loss",
]
