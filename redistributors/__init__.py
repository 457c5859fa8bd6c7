"""Methods of credit assignment: each spreads a response's score over its tokens, one file a method.

A rollout comes in, token scores (batch, response) come out; no method holds a model. Start at
:mod:`~redistributors.sparse` and :mod:`~redistributors.reward_attention`; :mod:`~redistributors.parts` is what methods
are made of, ``check`` tries one of your own, and ``compare_on`` puts one rollout through many.
"""

from redistributors.attention import Attention
from redistributors.contract import ContractReport, ContractTest, check
from redistributors.credit_table import Credit, CreditTable, compare_on
from redistributors.decoder_attention import DecoderAttention
from redistributors.ensemble import EnsembleCredit
from redistributors.gradient import Gradient
from redistributors.integrated_gradients import IntegratedGradients
from redistributors.leave_one_out import LeaveOneOut
from redistributors.log_ratio import LogRatio
from redistributors.own_rewards import OwnRewards
from redistributors.parts.credit import (
    Residual,
    evidence_of,
    fallback_fraction,
    normalised,
    shaped,
    signed,
    spread,
    unattributed,
)
from redistributors.parts.state_features import HiddenState, Position, PriorLogprobs, StateValue
from redistributors.potential_projection import PotentialProjection
from redistributors.prefix_difference import PrefixDifference
from redistributors.registry import REDISTRIBUTORS
from redistributors.reward_attention import RewardAttention
from redistributors.segment import EntropyPeaks, NGrams, Segment, Sentences
from redistributors.shapley import Shapley
from redistributors.sparse import Sparse
from redistributors.uniform import Uniform

__all__ = [
    "REDISTRIBUTORS",
    "Attention",
    "ContractReport",
    "ContractTest",
    "Credit",
    "CreditTable",
    "DecoderAttention",
    "EnsembleCredit",
    "EntropyPeaks",
    "Gradient",
    "HiddenState",
    "IntegratedGradients",
    "LeaveOneOut",
    "LogRatio",
    "NGrams",
    "OwnRewards",
    "Position",
    "PotentialProjection",
    "PrefixDifference",
    "PriorLogprobs",
    "Residual",
    "RewardAttention",
    "Segment",
    "Sentences",
    "Shapley",
    "Sparse",
    "StateValue",
    "Uniform",
    "check",
    "compare_on",
    "evidence_of",
    "fallback_fraction",
    "normalised",
    "shaped",
    "signed",
    "spread",
    "unattributed",
]
