"""The score in equal parts on every response token."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import check_beta, normalised, spread
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """credit_t = 1 / T (paper, section 5, "Uniform"). Sums to the score.

    ``beta`` is the share spread, the rest stays on the last token. The paper ran uniform at 1 and ABC at 0.8: set
    0.8 here for a like-for-like comparison.

    Raises:
        ValueError: ``beta`` outside [0, 1].
    """

    beta: float = 1.0
    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset()
    causal: ClassVar[bool] = False
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_beta(self.beta, "Uniform")

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        credit = normalised(mask.to(rollout.scores.dtype), mask)
        return spread(rollout.scores, credit, mask, beta=self.beta)
