"""Credit assignment as a plug-in: one file and one line of the registry per method."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from redistributors.attention import Attention
from redistributors.decoder_attention import DecoderAttention
from redistributors.ensemble import EnsembleCredit
from redistributors.gradient import Gradient
from redistributors.integrated_gradients import IntegratedGradients
from redistributors.leave_one_out import LeaveOneOut
from redistributors.log_ratio import LogRatio
from redistributors.own_rewards import OwnRewards
from redistributors.potential_projection import PotentialProjection
from redistributors.prefix_difference import PrefixDifference
from redistributors.reward_attention import RewardAttention
from redistributors.segment import EntropyPeaks, NGrams, Segment, Sentences
from redistributors.shapley import Shapley
from redistributors.sparse import Sparse
from redistributors.uniform import Uniform
from rlhf_core.types import Redistributor

REDISTRIBUTORS: Mapping[str, Callable[..., Redistributor]] = MappingProxyType(
    {
        "sparse": Sparse,
        "uniform": Uniform,
        "abc": RewardAttention,
        "abc-d": partial(DecoderAttention, rows="mean"),
        "abc-d2": partial(DecoderAttention, rows="last"),
        "prefix-difference": PrefixDifference,
        "gradient": Gradient,
        "integrated-gradients": IntegratedGradients,
        "leave-one-out": LeaveOneOut,
        "shapley": Shapley,
        "segment": Segment,
        "attention": Attention,
        "log-ratio": LogRatio,
        "potential-projection": PotentialProjection,
    }
)
"""Every method by name; each is constructible without arguments and takes its own settings as keywords. Those that want
a reward model of a kind of their own (``EnsembleCredit``, ``OwnRewards``) have no name here."""

__all__ = [
    "REDISTRIBUTORS",
    "Attention",
    "DecoderAttention",
    "EnsembleCredit",
    "EntropyPeaks",
    "Gradient",
    "IntegratedGradients",
    "LeaveOneOut",
    "LogRatio",
    "NGrams",
    "OwnRewards",
    "PotentialProjection",
    "PrefixDifference",
    "RewardAttention",
    "Segment",
    "Sentences",
    "Shapley",
    "Sparse",
    "Uniform",
]
