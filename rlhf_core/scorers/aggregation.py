"""Combine the scores of several reward models into one, with the share of each model in it.

A share is the weight that a member's token scores get, so that credit splits as the score does. The shares of a
response sum to 1: moving all scores by a constant moves the aggregate by it.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest, Source


@runtime_checkable
class Aggregate(Protocol):
    """A frozen rule that makes one score of a response of the scores of its members."""

    @property
    def exact(self) -> bool:
        """Whether the members' scores, weighted by ``shares``, sum to the aggregate."""
        ...

    @property
    def constant(self) -> bool:
        """Whether the shares are the same whatever the scores."""
        ...

    def aggregate(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, " batch"]:
        """The score of each response, in the members' unit."""
        ...

    def shares(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, "batch member"]:
        """Weight of each member; each row sums to 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class Mean:
    """1/n Σ_m R_m; every share is 1/n."""

    exact: ClassVar[bool] = True
    constant: ClassVar[bool] = True

    def aggregate(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, " batch"]:
        """Mean over members."""
        return scores.mean(1)

    def shares(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, "batch member"]:
        """1/n each."""
        return torch.full_like(scores, 1 / scores.shape[1])


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """min_m R_m (Coste et al. 2024, "Reward model ensembles help mitigate overoptimization", "WCO")."""

    exact: ClassVar[bool] = True
    constant: ClassVar[bool] = False

    def aggregate(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, " batch"]:
        """Lowest score of any member."""
        return scores.amin(1)

    def shares(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, "batch member"]:
        """All of it the lowest member's, in equal parts where several are."""
        lowest = (scores == scores.amin(1, keepdim=True)).to(scores.dtype)
        return lowest / lowest.sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class UncertaintyWeighted:
    """mean − lam · var over members (Coste et al. 2024, "UWO"), var with divisor n − ddof.

    share_m = 1/n − lam · (R_m − mean) / (n − ddof), because Σ_m (R_m − mean) R_m is (n − ddof) · var. Token scores c_m
    so weighted are mean c − lam · Cov(c, R). ``lam`` is per unit of score: 1/score.

    Raises:
        ValueError: a negative ``lam``, or another ``ddof`` than 0 (the members are all there are) and 1 (a sample);
            on use, no more members than ``ddof``.
    """

    lam: float
    ddof: int = 0
    exact: ClassVar[bool] = True
    constant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (_is_number(self.lam) and 0 <= self.lam < float("inf")):
            raise ValueError(f"UncertaintyWeighted: lam must be a finite number, 0 or more, got {self.lam!r}")
        if type(self.ddof) is not int or self.ddof not in (0, 1):
            raise ValueError(f"UncertaintyWeighted: ddof must be 0 or 1, got {self.ddof!r}")

    def aggregate(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, " batch"]:
        """mean − lam · var."""
        return scores.mean(1) - self.lam * self._deviations(scores).square().sum(1) / self._divisor(scores)

    def shares(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, "batch member"]:
        """Below 1/n, and below 0 far enough above the mean: who promises more than the others counts for less."""
        return 1 / scores.shape[1] - self.lam * self._deviations(scores) / self._divisor(scores)

    def _deviations(self, scores: Tensor) -> Tensor:
        return scores - scores.mean(1, keepdim=True)

    def _divisor(self, scores: Tensor) -> int:
        members = scores.shape[1]
        if members <= self.ddof:
            raise ValueError(f"{self!r} needs more than {self.ddof} members, got {members}; a variance has no spread")
        return members - self.ddof


@dataclass(frozen=True, kw_only=True)
class Entropic:
    """−1/lam · log(1/n Σ_m exp(−lam R_m)): the mean as lam → 0, the worst case as lam → ∞ (entropic risk measure,
    Föllmer and Schied 2002). ``lam`` is per unit of score: 1/score.

    share_m = softmax(−lam R)_m, its gradient. Weighted by it the members' scores do not sum to the aggregate; the rest
    is KL(shares || 1/n) / lam, which lies between 0 and log(n) / lam.

    Raises:
        ValueError: a ``lam`` that is not above 0.
    """

    lam: float
    exact: ClassVar[bool] = False
    constant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (_is_number(self.lam) and 0 < self.lam < float("inf")):
            raise ValueError(f"Entropic: lam must be a finite number above 0 (0 would be Mean()), got {self.lam!r}")

    def aggregate(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, " batch"]:
        """Soft minimum over members."""
        members = torch.tensor(scores.shape[1], dtype=scores.dtype, device=scores.device)
        return -((-self.lam * scores).logsumexp(1) - members.log()) / self.lam

    def shares(self, scores: Float[Tensor, "batch member"]) -> Float[Tensor, "batch member"]:
        """softmax(−lam · scores): most of it the lowest member's."""
        return (-self.lam * scores).softmax(1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class OfMember(EvidenceRequest):
    """``request`` asked of one member of an ensemble, counted from 0; the answer is the member's own."""

    request: EvidenceRequest
    member: int
    source: Source = "reward"

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """That of the request."""
        return self.request.shape(batch, response)


@dataclass(frozen=True, kw_only=True)
class MemberScores(EvidenceRequest):
    """Raw scores (batch, member) of an ensemble of so many ``members`` that makes its score by ``aggregate``."""

    aggregate: Aggregate
    members: int
    source: Source = "reward"

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """A number per member."""
        return (batch, self.members)
