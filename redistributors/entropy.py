"""Entropy: the score goes where the policy was unsure how to go on."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import check_beta, evidence_of, fallback_fraction, normalised, spread
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest, TokenEntropy
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """credit_t = H_t / Σ_k H_k, where H_t is the entropy, in nats, of the distribution that token t was drawn from
    (tempered, EOS banned below the minimum length). Sums to the score. All on the last token where every H_t is 0.

    After GTPO (Tan et al. 2025, "GTPO and GRPO-S: Token and sequence-level reward shaping with policy entropy",
    arXiv 2508.04349). Taken from it: a token's reward is proportional to the entropy of the sampling policy there.
    Not taken: its sum over the other responses of a group at the same position (here over the tokens of the response,
    so that no row depends on another), its constant part for every token, and its inverse entropy for failed responses
    (a bad score is spread by the same weights as a good one).

    A control for other dense credit: the weights know nothing of the reward. ``beta`` is the share of the score that
    follows them, the rest stays on the last token. Any reward works; no further pass.

    Raises:
        ValueError: ``beta`` outside [0, 1].
    """

    beta: float = 1.0
    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset({TokenEntropy()})
    causal: ClassVar[bool] = False
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_beta(self.beta, "Entropy")

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        return spread(rollout.scores, normalised(_entropy(rollout), mask), mask, beta=self.beta)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_fallback``: share of responses without any entropy (credit: last token)."""
        return {"credit_fallback": fallback_fraction(_entropy(rollout), rollout.sequences.response_mask)}


def _entropy(rollout: Rollout) -> Float[Tensor, "batch response"]:
    """Rounding may leave the entropy of a sure token a hair below 0."""
    return evidence_of(rollout, TokenEntropy(), "Entropy").clamp(min=0)
