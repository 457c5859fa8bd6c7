"""The whole score on the last response token: plain RLHF."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import spread
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """token_score_t = [t = T] · score (paper, eq. 3). Sums to the score."""

    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset()
    causal: ClassVar[bool] = True
    conserving: ClassVar[bool] = True
    shaping: ClassVar[bool] = True
    __str__ = as_typed

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        return spread(rollout.scores, torch.zeros_like(rollout.logprobs), mask, beta=0.0)
