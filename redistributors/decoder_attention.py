"""ABC-D and ABC-D2: credit is the policy's own attention while it wrote the response."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.attention_requests import AttentionRow, AttentionRowMean
from redistributors.parts.credit import check_beta, check_layer, evidence_of, fallback_fraction, normalised, spread
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import AttentionTap, EvidenceRequest
from rlhf_core.types import Rollout

Rows = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class DecoderAttention:
    """credit_t ∝ the policy's attention on token t (Chan et al. 2024, section 5, "ABC-D"). Sums to the score.

    ``rows="mean"`` (abc-d): the mean over the rows that could see the token; ``rows="last"`` (abc-d2): the row that
    predicted the final token. One layer (the last by default), mean over heads, renormalised over the response. No
    row sees the last token, so attention gives it nothing.

    ``shift``: attention on token k is credited to token k + shift. 0 is what the text says; the authors' public code
    does 1, so that the first token gets nothing. ``layer``: a number, negative from the last. ``beta``: the share of
    the score that follows attention; the rest stays on the last token.

    Raises:
        ValueError: a setting of another kind, or out of its range.
    """

    rows: Rows = "mean"
    beta: float = 0.8
    shift: int = 0
    layer: int = -1
    causal: ClassVar[bool] = False
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_beta(self.beta, "DecoderAttention")
        check_layer(self.layer, "DecoderAttention")
        if self.rows not in list(REQUESTS):
            raise ValueError(f"DecoderAttention: rows must be one of {', '.join(REQUESTS)}, got {self.rows!r}")
        if type(self.shift) is not int or self.shift not in (0, 1):
            raise ValueError(f"DecoderAttention: shift must be 0 or 1, got {self.shift!r}")

    @property
    def request(self) -> AttentionTap:
        """The evidence this method reads."""
        return REQUESTS[self.rows](source="policy", layer=self.layer)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Attention rows, measured in the pass that computes the log-probabilities."""
        return frozenset({self.request})

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        credit = normalised(self._shifted(rollout), mask)
        return spread(rollout.scores, credit, mask, beta=self.beta)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_fallback``: share of responses no attention fell on (one-token responses; credit: last token)."""
        return {"credit_fallback": fallback_fraction(self._shifted(rollout), rollout.sequences.response_mask)}

    def _shifted(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        weights = evidence_of(rollout, self.request, "DecoderAttention")
        width = weights.shape[1]
        return torch.nn.functional.pad(weights, (self.shift, 0))[:, :width]


REQUESTS: dict[Rows, type[AttentionRow] | type[AttentionRowMean]] = {"mean": AttentionRowMean, "last": AttentionRow}
