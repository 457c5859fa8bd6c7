"""The registry: every method by its name."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from redistributors.attention import Attention
from redistributors.decoder_attention import DecoderAttention
from redistributors.entropy import Entropy
from redistributors.gradient import Gradient
from redistributors.information import Information
from redistributors.integrated_gradients import IntegratedGradients
from redistributors.leave_one_out import LeaveOneOut
from redistributors.log_ratio import LogRatio
from redistributors.monte_carlo import MonteCarlo
from redistributors.potential_projection import PotentialProjection
from redistributors.prefix_difference import PrefixDifference
from redistributors.reward_attention import RewardAttention
from redistributors.segment import Segment
from redistributors.shapley import Shapley
from redistributors.sparse import Sparse
from redistributors.uniform import Uniform
from rlhf_core.names import nearest
from rlhf_core.types import Redistributor


class _Named(dict[str, Callable[..., Redistributor]]):
    def __missing__(self, name: object) -> Callable[..., Redistributor]:
        meant = nearest(name, self) or "."
        raise KeyError(f"no redistributor {name!r}{meant} There are {', '.join(self)}")


REDISTRIBUTORS: Mapping[str, Callable[..., Redistributor]] = MappingProxyType(
    _Named(
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
            "entropy": Entropy,
            "information": Information,
            "monte-carlo": MonteCarlo,
        }
    )
)
"""Every method by name; each is constructible without arguments and takes its own settings as keywords. An unknown name
is a KeyError that names the nearest. Methods that need a special kind of reward model (``EnsembleCredit``,
``OwnRewards``) have no name here."""
