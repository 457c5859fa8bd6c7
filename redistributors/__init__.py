"""Credit assignment as a plug-in: one file and one line of the registry per method."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from redistributors.decoder_attention import DecoderAttention
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
        "shapley": Shapley,
        "segment": Segment,
    }
)
"""Every method by name; each is constructible without arguments and takes its own settings as keywords."""

__all__ = [
    "REDISTRIBUTORS",
    "DecoderAttention",
    "EntropyPeaks",
    "NGrams",
    "PrefixDifference",
    "RewardAttention",
    "Segment",
    "Sentences",
    "Shapley",
    "Sparse",
    "Uniform",
]
