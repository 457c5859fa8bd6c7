from .attention import Attention
from .contract import ContractReport, ContractTest, check
from .credit_table import Credit, CreditTable, compare_on
from .decoder_attention import DecoderAttention
from .ensemble import EnsembleCredit
from .entropy import Entropy
from .gradient import Gradient
from .information import Information
from .integrated_gradients import IntegratedGradients
from .leave_one_out import LeaveOneOut
from .log_ratio import LogRatio
from .monte_carlo import MonteCarlo
from .own_rewards import OwnRewards
from .parts.credit import (
    Residual,
    evidence_of,
    fallback_fraction,
    normalised,
    shaped,
    signed,
    spread,
    unattributed,
)
from .parts.state_features import HiddenState, Position, PriorLogprobs, StateValue
from .potential_projection import PotentialProjection
from .prefix_difference import PrefixDifference
from .registry import REDISTRIBUTORS
from .reward_attention import RewardAttention
from .segment import EntropyPeaks, NGrams, Segment, Sentences
from .shapley import Shapley
from .sparse import Sparse
from .uniform import Uniform

__all__ = [
    "REDISTRIBUTORS",
    "Attention",
    "ContractReport",
    "ContractTest",
    "Credit",
    "CreditTable",
    "DecoderAttention",
    "EnsembleCredit",
    "Entropy",
    "EntropyPeaks",
    "Gradient",
    "HiddenState",
    "Information",
    "IntegratedGradients",
    "LeaveOneOut",
    "LogRatio",
    "MonteCarlo",
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
