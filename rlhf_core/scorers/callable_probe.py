"""The probe of a callable: it can be asked for scores of shortened responses, and for nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.probe import AttentionMaps, Baseline, Cost, Experiment, MapGradients, PathPoint, Variants
from rlhf_core.types import Sequences

Scores = Callable[[Sequences, list[int], list[list[int]]], Float[Tensor, " row"]]
"""Scores of other responses, as token ids, in the place of those of the given rows."""


UNDEMANDING = "sparse, uniform, abc-d, abc-d2, log-ratio"
METHODS = f"{UNDEMANDING}, leave-one-out, shapley"
"""Names of the methods that ask nothing of a reward but its score, and of those that a callable can serve. The tests
hold them against the registry, which the engine does not import."""


def why_not(request: EvidenceRequest) -> str:
    """Why a callable cannot answer a request, in words, and what works with one; empty where it can."""
    if not isinstance(request, Experiment):
        return f"a callable returns a score and shows nothing else; these methods work with one: {METHODS}"
    beyond = ", ".join(sorted(request.uses - {"delete"}))
    if not beyond:
        return ""
    return (
        f"a callable can score responses without some of their tokens, but not {beyond}; these methods work with one: "
        f"{METHODS}"
    )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class CallableProbe:
    """A ``Probe`` (see rlhf_core.probe) of a callable."""

    scores_of: Scores
    sequences: Sequences
    cost: Cost = field(default_factory=Cost)

    def select(self, rows: Int[Tensor, " row"]) -> "CallableProbe":
        """The same callable asked about some of the rows."""
        return replace(self, sequences=self.sequences.select(rows))

    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """Scores of shortened responses, each different one once; raises ValueError where tokens are to be replaced."""
        if variants.absent != "delete":
            raise ValueError("a callable has no token that stands for nothing: delete tokens instead")
        prompts, responses = self.sequences.prompts(), self.sequences.responses()
        wanted = [
            (row, tuple(token for token, stands in zip(responses[row], kept, strict=False) if stands))
            for row, of_row in enumerate(variants.keep.tolist())
            for kept in of_row
        ]
        distinct = {key: number for number, key in enumerate(dict.fromkeys(wanted))}
        with self.cost.timed():
            scores = self.scores_of(self.sequences, [row for row, _ in distinct], [list(kept) for _, kept in distinct])
        self.cost.forwards += len(distinct)
        self.cost.tokens += sum(len(prompts[row]) + len(kept) for row, kept in distinct)
        which = torch.tensor([distinct[key] for key in wanted], device=scores.device)
        return scores[which].reshape(variants.keep.shape[:2]).to(self.sequences.response_ids.device)

    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """Refused: one call says nothing about beginnings."""
        raise ValueError("a callable has no prefix scores")

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """Refused."""
        raise ValueError("a callable has no embeddings")

    def attention(
        self, reduce: Callable[[AttentionMaps], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """Refused."""
        raise ValueError("a callable shows no attention")

    def attention_gradients(
        self, reduce: Callable[[MapGradients], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """Refused."""
        raise ValueError("a callable shows no attention")
