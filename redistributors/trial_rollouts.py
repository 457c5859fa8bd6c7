"""Rollouts to test a method on: made-up ones, parts of one, and the same prefixes with other endings."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from rlhf_core.evidence import (
    AttentionTap,
    AuxiliaryLogprobs,
    ContinuationValues,
    EvidenceRequest,
    FullKL,
    HiddenTap,
    SentenceEnds,
    TokenEntropy,
)
from rlhf_core.probe import Experiment
from rlhf_core.scorers.aggregation import OfMember
from rlhf_core.types import Rollout, Sequences

LENGTHS = (7, 1, 9, 8)
SCORES = (2.0, -3.0, 0.0, 0.5)
TOKENS = ("logprobs", "ref_logprobs", "values", "kl")
"""A rollout's figures of every token."""


def made_up_rollout(needs: Iterable[EvidenceRequest]) -> Rollout:
    """Four responses of unequal length, one of them a single token, with evidence for ``needs``. Scores have been
    scaled and centred, so that they are not the raw ones; one of them is 0."""
    generator = torch.Generator().manual_seed(3)
    lengths, scores = torch.tensor(LENGTHS), torch.tensor(SCORES)
    mask = torch.arange(max(LENGTHS)) < lengths[:, None]
    sequences = Sequences(
        prompt_ids=torch.tensor([[0, 1], [2, 3], [0, 4], [5, 1]]),
        prompt_mask=torch.tensor([[False, True], [True, True], [False, True], [True, True]]),
        response_ids=torch.randint(1, 6, mask.shape, generator=generator) * mask,
        response_mask=mask,
        min_lengths=torch.zeros_like(lengths),
        max_lengths=lengths,
        finished=torch.tensor([True, False, True, False]),
    )
    figures = {name: torch.randn(mask.shape, generator=generator) * mask for name in TOKENS}
    evidence = made_up_evidence(needs, mask, seed=1)
    return Rollout(
        sequences=sequences, raw_scores=2 * scores + 1, scores=scores, score_scale=0.5, evidence=evidence, **figures
    )


def made_up_evidence(
    needs: Iterable[EvidenceRequest], mask: Bool[Tensor, "batch response"], *, seed: int
) -> dict[EvidenceRequest, Tensor]:
    """Evidence of the shape that each request states, 0 on padding: weights in [0, 1) for what is read off attention,
    numbers in [-2, 2) for the rest."""
    generator, evidence = torch.Generator().manual_seed(seed), {}
    for request in sorted(needs, key=repr):
        shape = request.shape(*mask.shape)
        drawn = torch.rand(shape, generator=generator)
        if not _of_attention(_asked(request)):
            drawn = 4 * drawn - 2
        if len(shape) > 1 and shape[:2] == mask.shape:
            drawn = drawn * mask.reshape(*mask.shape, *(1 for _ in shape[2:]))
        evidence[request] = drawn
    return evidence


def part_of(rollout: Rollout, rows: Sequence[int], width: int) -> Rollout:
    """Some rows of everything, cut to their first ``width`` tokens, without the padding beyond."""
    chosen = torch.tensor(rows)
    sequences = rollout.sequences.select(chosen)

    def of(values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values[chosen][tuple(map(slice, shape))]

    figures: dict[str, Any] = {name: of(getattr(rollout, name), (len(rows), width)) for name in TOKENS}
    return replace(
        rollout,
        sequences=replace(
            sequences,
            response_ids=sequences.response_ids[:, :width],
            response_mask=sequences.response_mask[:, :width],
        ),
        raw_scores=rollout.raw_scores[chosen],
        scores=rollout.scores[chosen],
        evidence={request: of(x, request.shape(len(rows), width)) for request, x in rollout.evidence.items()},
        **figures,
    )


def with_other_ends(rollout: Rollout, kept: int) -> Rollout:
    """Every response, all of one length, goes on after ``kept`` tokens as the one above it does, and has its score.
    What is known of a response after so many tokens stays, be it evidence."""
    sequences = rollout.sequences
    return replace(
        rollout,
        sequences=replace(sequences, response_ids=_swapped(sequences.response_ids, kept)),
        logprobs=_swapped(rollout.logprobs, kept),
        ref_logprobs=_swapped(rollout.ref_logprobs, kept),
        values=_swapped(rollout.values, kept + 1),
        kl=_swapped(rollout.kl, kept),
        raw_scores=rollout.raw_scores.roll(1),
        scores=rollout.scores.roll(1),
        evidence={
            request: _swapped(x, kept + ahead) if (ahead := known_ahead(request)) is not None else x.roll(1, 0)
            for request, x in rollout.evidence.items()
        },
    )


def known_ahead(request: EvidenceRequest) -> int | None:
    """How many more columns of evidence than tokens are known at any token: 1 where it is of the state before a token,
    0 where it is of the token too, None if it may know the whole response."""
    asked = _asked(request)
    if isinstance(asked, HiddenTap | TokenEntropy | FullKL | ContinuationValues):
        return 1
    return 0 if isinstance(asked, AuxiliaryLogprobs | SentenceEnds) else None


def _swapped(values: Shaped[Tensor, "batch response ..."], known: int) -> Shaped[Tensor, "batch response ..."]:
    return torch.cat([values[:, :known], values.roll(1, 0)[:, known:]], dim=1)


def _asked(request: EvidenceRequest) -> EvidenceRequest:
    return request.request if isinstance(request, OfMember) else request


def _of_attention(request: EvidenceRequest) -> bool:
    """Whether a method may treat it as weights, which are never negative."""
    maps = {"attention", "attention_gradients"}
    return isinstance(request, AttentionTap) or (isinstance(request, Experiment) and not maps.isdisjoint(request.uses))
