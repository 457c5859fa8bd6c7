"""KL between policy and reference: per-token estimators and the controllers of the penalty's coefficient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.config import MAX_RELATIVE_ERROR, KLConfig

KL_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: log_ratio,
    "abs": torch.abs,
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    "k3": lambda log_ratio: torch.expm1(-log_ratio) + log_ratio,
}


def kl_estimate(
    logprobs: Float[Tensor, "batch response"], ref_logprobs: Float[Tensor, "batch response"], kind: str
) -> Float[Tensor, "batch response"]:
    """Estimate KL(policy || reference) in nats from the sampled token, with x = ``logprobs`` − ``ref_logprobs``.

    ``kind``: "k1" is x, unbiased; "abs" is abs(x); "k2" is x²/2, low variance; "k3" is exp(−x) − 1 + x, unbiased and
    never negative. Source: Schulman 2020, "Approximating KL divergence"; "abs" as in TRL 0.7.4. "full", the exact sum
    over the vocabulary, cannot be had from two numbers: it is measured in the log-probability pass
    (``evidence.FullKL``).

    Raises:
        ValueError: an unknown kind, "full" included.
    """
    if kind not in KL_ESTIMATORS:
        raise ValueError(
            f"kl_estimate: no estimator {kind!r} from sampled log-probabilities; one of {', '.join(KL_ESTIMATORS)}"
        )
    return KL_ESTIMATORS[kind](logprobs - ref_logprobs)


@runtime_checkable
class KLController(Protocol):
    """Holds ``coef``, the penalty's coefficient (score units per nat)."""

    coef: float

    def update(self, mean_response_kl: float, n_responses: int) -> None:
        """Called once per step, after the update: ``mean_response_kl`` is k1 summed over a response, mean over the
        ``n_responses`` of the batch (nats)."""
        ...


@dataclass
class FixedKL:
    """A coefficient ``coef`` (score units per nat) that never moves."""

    coef: float

    def update(self, mean_response_kl: float, n_responses: int) -> None:
        """Does nothing; ``mean_response_kl`` and ``n_responses`` are ignored."""


@dataclass
class AdaptiveKL:
    """Proportional controller of Ziegler et al. 2019, section 2.2, as in TRL 0.7.4.

    ``init_coef``: the first coefficient, in score units per nat. ``target``: k1 summed over a response, mean over the
    batch (nats). ``horizon``: in responses.

    Raises:
        ValueError: at construction, a coefficient that is negative, or a target or horizon that is not above 0.
    """

    init_coef: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        if not (0 <= self.init_coef < float("inf") and self.target > 0 and self.horizon > 0):
            raise ValueError(f"a coefficient must be 0 or more and target and horizon above 0, got {self}")
        self.coef = self.init_coef

    def update(self, mean_response_kl: float, n_responses: int) -> None:
        """coef ← coef · (1 + clip(mean_response_kl / target − 1, ±0.2) · n_responses / horizon); once per step, after
        the update.

        Raises:
            ValueError: a horizon so short that the coefficient might become negative, or a KL that is not finite.
        """
        if MAX_RELATIVE_ERROR * n_responses >= self.horizon or not isfinite(mean_response_kl):
            raise ValueError(
                f"{self} cannot follow a KL of {mean_response_kl} over {n_responses} responses: it must be finite, and "
                f"the horizon above {MAX_RELATIVE_ERROR * n_responses}, or the coefficient could become negative"
            )
        error = mean_response_kl / self.target - 1
        clipped = min(max(error, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
        self.coef *= 1 + clipped * n_responses / self.horizon


def kl_controller(config: KLConfig) -> KLController:
    """The controller that ``config`` asks for."""
    return AdaptiveKL(config.init_coef, config.target, config.horizon) if config.adaptive else FixedKL(config.init_coef)
