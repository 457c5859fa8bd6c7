"""Credit of an ensemble: each member's own credit, weighted by that member's share of the score."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import Residual, check_residual, evidence_of, signed
from redistributors.reward_attention import RewardAttention
from rlhf_core.evidence import ContinuationValues, EvidenceRequest
from rlhf_core.masking import masked_mean
from rlhf_core.scorers.aggregation import Aggregate, Mean, MemberScores, OfMember
from rlhf_core.types import Learns, Redistributor, ReportsMetrics, Rollout


@dataclass(frozen=True, kw_only=True)
class EnsembleCredit:
    """token_score_t = Σ_m share_m c_{m,t}, where c_m is what ``inner`` makes of member m's score and evidence alone.

    The shares are those of ``aggregate``, so credit is combined in the same way as the score: for mean − lam · var it
    is mean c_t − lam · Cov(c_t, R) over members. They sum to 1. Centring and clipping are applied to every member's
    score as they were to the aggregate. Where ``inner`` conserves, rows sum to the score: exactly where the aggregate
    is the weighted sum of its members' scores; else ("entropic") ``residual`` says where the rest goes, to the "last"
    token, in equal parts to all ("uniform"), or "nowhere".

    ``members`` and ``aggregate`` must be those of the reward model, a ``RewardEnsemble``.

    Raises:
        ValueError: fewer than one member, no redistributor or aggregate, an unknown ``residual``, or an ``inner`` that
            learns or reads continuations.
    """

    inner: Redistributor = field(default_factory=RewardAttention)
    members: int = 2
    aggregate: Aggregate = field(default_factory=Mean)
    residual: Residual = "last"

    def __post_init__(self) -> None:
        check_residual(self.residual, "EnsembleCredit")
        if type(self.members) is not int or self.members < 1:
            raise ValueError(f"EnsembleCredit: members must be a whole number from 1 on, got {self.members!r}")
        is_class = isinstance(self.inner, type) or isinstance(self.aggregate, type)
        if is_class or not isinstance(self.inner, Redistributor) or not isinstance(self.aggregate, Aggregate):
            raise ValueError(
                "EnsembleCredit: inner must be a redistributor and aggregate a rule of "
                "rlhf_core.scorers.aggregation, such as "
                f"RewardAttention() and Mean(), got {self.inner!r} and {self.aggregate!r}"
            )
        if isinstance(self.inner, Learns):
            raise ValueError(
                f"EnsembleCredit: {self.inner} learns, and would see {self.members} members as one; make "
                "EnsembleCredit its inner method, with features without HiddenState: an ensemble has no states of its "
                "own"
            )
        if any(isinstance(request, ContinuationValues) for request in self.inner.needs):
            raise ValueError(
                f"EnsembleCredit: {self.inner} reads scores of further responses, which are those of the whole "
                "ensemble; give it to the trainer itself"
            )

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """The members' scores, and of each member what ``inner`` needs of a reward model."""
        asked = {self._of(request, member) for request in self.inner.needs for member in range(self.members)}
        return frozenset(asked | {self._scores})

    @property
    def causal(self) -> bool:
        """True if ``inner`` is causal and no share depends on a score, because a score depends on the whole
        response."""
        return self.inner.causal and self.aggregate.constant

    @property
    def conserving(self) -> bool:
        """True if ``inner`` is conserving and no part of the score is left out."""
        return self.inner.conserving and (self.aggregate.exact or self.residual != "nowhere")

    @property
    def gamma(self) -> float:
        """The discount that ``inner`` is exact at; like ``inner``, this has none where it is not tied to one."""
        return self.inner.gamma  # type: ignore[attr-defined, no-any-return]  # AttributeError, and so hasattr is False

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        members = self._rollouts(rollout)
        shares = self.aggregate.shares(self._member_scores(rollout))
        parts = torch.stack([self.inner(member) for member in members], dim=2)
        token_scores = (parts * shares[:, None]).sum(2)
        if self.aggregate.exact:
            return token_scores.detach()
        accounted = (torch.stack([member.scores for member in members], dim=1) * shares).sum(1)
        due = replace(rollout, scores=token_scores.sum(1) + rollout.scores - accounted, score_scale=1.0)
        return signed(token_scores, due, residual=self.residual)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``member_disagreement``: standard deviation over members of a token's score, mean over tokens;
        ``member_score_std``: the same of the raw scores, mean over responses (both with divisor n). The figures of
        ``inner``, mean over members."""
        members = self._rollouts(rollout)
        parts = torch.stack([self.inner(member) for member in members], dim=2)
        disagreement = masked_mean(parts.std(2, correction=0), rollout.sequences.response_mask)
        spread = self._member_scores(rollout).std(1, correction=0).mean()
        figures = {"member_disagreement": float(disagreement), "member_score_std": float(spread)}
        if isinstance(self.inner, ReportsMetrics):
            found = [self.inner.metrics(member) for member in members]
            figures |= {name: sum(one[name] for one in found) / len(found) for name in found[0]}
        return figures

    @property
    def _scores(self) -> MemberScores:
        return MemberScores(aggregate=self.aggregate, members=self.members)

    def _member_scores(self, rollout: Rollout) -> Float[Tensor, "batch member"]:
        return evidence_of(rollout, self._scores, "EnsembleCredit").to(rollout.scores)

    def _rollouts(self, rollout: Rollout) -> list[Rollout]:
        """What the rollout would have been with each member as the reward model, but for centring, scaling and
        clipping, which are those of the aggregate."""
        raw = self._member_scores(rollout)
        moved = rollout.scores - rollout.score_scale * self.aggregate.aggregate(raw)
        return [
            replace(
                rollout,
                raw_scores=raw[:, member],
                scores=rollout.score_scale * raw[:, member] + moved,
                evidence={
                    request: evidence_of(rollout, self._of(request, member), "EnsembleCredit")
                    for request in self.inner.needs
                },
            )
            for member in range(self.members)
        ]

    def _of(self, request: EvidenceRequest, member: int) -> EvidenceRequest:
        """The request to one member; requests to policy and reference are the same for all members."""
        return OfMember(request=request, member=member) if request.source == "reward" else request
