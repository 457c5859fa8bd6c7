"""ABC: credit is the attention of the reward model at the position where it reads the score."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.attention_requests import AttentionRow
from redistributors.parts.credit import check_beta, check_layer, evidence_of, fallback_fraction, normalised, spread
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class RewardAttention:
    """credit_t ∝ α_t, one row of the reward model's attention (Chan et al. 2024, eq. 7 and 8). Sums to the score.

    α is the row of the position the score is pooled from, mean over heads of one layer (the last by default),
    restricted to the response and renormalised to sum 1. The authors' public code takes the row of the last response
    token instead, which is another row where pooling reads an earlier token (pad = eos); here the two coincide,
    because pooling reads the last real token. Eq. 7's additive form (sum 2 x score) is only the paper's derivation.

    ``beta``: the share of the score that follows attention; the rest stays on the last token (paper: 0.8). ``layer``:
    an attention layer's number, negative from the last.

    Raises:
        ValueError: ``beta`` outside [0, 1], or a ``layer`` that is not a whole number.
    """

    beta: float = 0.8
    layer: int = -1
    causal: ClassVar[bool] = False
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_beta(self.beta, "RewardAttention")
        check_layer(self.layer, "RewardAttention")

    @property
    def request(self) -> AttentionRow:
        """The evidence this method reads."""
        return AttentionRow(source="reward", layer=self.layer)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """One attention row, measured in the scoring pass."""
        return frozenset({self.request})

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        credit = normalised(evidence_of(rollout, self.request, "RewardAttention"), mask)
        return spread(rollout.scores, credit, mask, beta=self.beta)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_fallback``: share of responses without any attention on themselves (credit: last token)."""
        mask = rollout.sequences.response_mask
        weights = evidence_of(rollout, self.request, "RewardAttention")
        return {"credit_fallback": fallback_fraction(weights, mask)}
