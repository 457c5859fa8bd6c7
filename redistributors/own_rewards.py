"""A scorer's own token rewards, from a process reward model or a rule checker."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import Residual, check_residual, evidence_of, signed, unattributed
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.scorers.token_scorer import OwnTokenRewards
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class OwnRewards:
    """token_score_t = what the scorer (``SpanReward``, ``PerTokenReward``, ``ProcessReward``) gave token t, times the
    score's scale.

    The raw score is their sum (process rewards, Lightman et al. 2024, "Let's verify step by step"; span rewards, Wu et
    al. 2023, "Fine-grained human feedback gives better rewards"). ``residual``: the change by centring and clipping
    goes to the "last" token, in equal parts to all ("uniform"), or "nowhere"; then rows sum to the scaled raw score. A
    scorer may look at the whole response before it rewards a token, so this is not causal.

    Raises:
        ValueError: an unknown ``residual``.
    """

    residual: Residual = "last"
    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset({OwnTokenRewards()})
    causal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_residual(self.residual, "OwnRewards")

    @property
    def conserving(self) -> bool:
        """True unless the residual is left out."""
        return self.residual != "nowhere"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        rewards = evidence_of(rollout, OwnTokenRewards(), "OwnRewards")
        return signed(rewards, rollout, residual=self.residual)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_residual``: mean of abs(score − what is attributed), score units."""
        return {"credit_residual": unattributed(evidence_of(rollout, OwnTokenRewards(), "OwnRewards"), rollout)}
