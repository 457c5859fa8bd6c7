"""A PPO engine for language models in which credit assignment is a plug-in."""

from rlhf_core.buffer import RolloutBuffer
from rlhf_core.checks import HealthError
from rlhf_core.config import KLConfig, PPOConfig, ScoreConfig
from rlhf_core.estimators.leave_one_out import leave_one_out_advantages
from rlhf_core.evidence import AttentionTap, ColumnTap, EvidenceRequest, FullKL, HiddenTap, Layout, PrefixScores
from rlhf_core.kl import AdaptiveKL, FixedKL, kl_estimate
from rlhf_core.losses import policy_loss, value_loss
from rlhf_core.masking import masked_mean, masked_var, masked_whiten
from rlhf_core.probe import Experiment, Probe, Variants
from rlhf_core.returns import discounted_returns, generalized_advantages, lambda_returns
from rlhf_core.run.freed_memory import keep_freed_memory
from rlhf_core.run.loggers import JSONLines, Logger, TensorBoard, WeightsAndBiases
from rlhf_core.scorers.callables import TextReward, TokenReward
from rlhf_core.scorers.token_scorer import PerTokenReward, SpanReward
from rlhf_core.step_guard import Diverged, UnusableRollout
from rlhf_core.trainer import PPOTrainer
from rlhf_core.types import (
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
from rlhf_core.update import ppo_update

__version__ = "0.1.0"

__all__ = [
    "AdaptiveKL",
    "AttentionTap",
    "ColumnTap",
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
    "value_loss",
]
