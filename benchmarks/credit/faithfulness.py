"""Measure how faithful credit is to the score: by re-scoring altered texts, by signs and by concentration.

Credit is one number per response token; tokens are ordered from the most positive credit to the most negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.probe import Absence, Probe, Variants


@dataclass(frozen=True, eq=False, kw_only=True)
class Curves:
    """Raw score against the share of tokens, 0, 1/n, ..., 1 of each response: taken away in the order of credit
    (``deletion``, from the whole response to nothing), or given back alone in that order (``insertion``, from nothing
    to the whole)."""

    deletion: Float[Tensor, "batch point"]
    insertion: Float[Tensor, "batch point"]


def curves(
    probe: Probe,
    credit: Float[Tensor, "batch response"],
    ties: Float[Tensor, "draw batch response"],
    *,
    points: int,
    absent: Absence,
) -> Curves:
    """Both curves with ``points`` steps, mean over the orders that ``ties`` make of equal credit.

    Equal texts are scored once, so that credit without ties costs the same however many orders there are. Insertion
    keeps what deletion in the opposite order would leave. (Samek et al. 2017, "Evaluating the visualization of what a
    deep neural network has learned"; Petsiuk, Das and Saenko 2018, "RISE".)
    """
    mask = probe.sequences.response_mask
    ranks = torch.stack([ranked(credit, mask, one) for one in ties], dim=1)
    gone = counts(mask, points)
    first = (ranks[:, :, None] < gone[:, None, :, None]) & mask[:, None, None]
    keep = torch.stack([mask[:, None, None] & ~first, first], dim=1)
    variants = rearrange(keep, "batch way draw point response -> batch (way draw point) response")
    scores = probe.scores(Variants(keep=variants, absent=absent))
    by_draw = rearrange(scores, "batch (way draw point) -> way batch draw point", way=2, draw=len(ties))
    deletion, insertion = by_draw.mean(2)
    return Curves(deletion=deletion, insertion=insertion)


def ranked(
    credit: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], ties: Float[Tensor, "batch response"]
) -> Int[Tensor, "batch response"]:
    """Each token's place, 0 for the most positive credit; equal credit in the order of ``ties``; padding comes last."""
    shuffled = ties.argsort(dim=1)
    known = torch.where(mask, credit, -torch.inf).gather(1, shuffled)
    order = shuffled.gather(1, known.argsort(dim=1, descending=True, stable=True))
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


def counts(mask: Bool[Tensor, "batch response"], points: int) -> Int[Tensor, "batch point"]:
    """Tokens of each response at the shares 0, 1/points, ..., 1, rounded to the nearest."""
    lengths = mask.sum(1, keepdim=True)
    return (lengths * torch.arange(points + 1, device=mask.device) / points + 0.5).floor().long()


def aopc(curves: Curves) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Area over the perturbation curve, mean over all its points of how far the score fell, r(x) − r(x without the
    first), and how far it rose, r(the first alone) − r(none); score units.

    The first is the comprehensiveness of DeYoung et al. 2020 ("ERASER"), with every point a bin; r(x) − r(none) less
    the second is their sufficiency.
    """
    fall = (curves.deletion[:, :1] - curves.deletion).mean(1)
    return fall, (curves.insertion - curves.insertion[:, :1]).mean(1)


def effective_tokens(credit: Float[Tensor, "batch response"]) -> Float[Tensor, " batch"]:
    """(Σ |c|)² / Σ c²: T for equal credit, 1 where one token has it all (Hill 1973, the number of order 2); NaN
    without credit."""
    return credit.abs().sum(1).square() / credit.square().sum(1)


def opposed_share(
    credit: Float[Tensor, "batch response"], sign: Float[Tensor, "batch response"]
) -> Float[Tensor, " batch"]:
    """Share of Σ |credit| that stands on tokens whose ``sign`` is the other one, strictly; NaN without credit."""
    size = credit.abs()
    return torch.where(credit * sign < 0, size, 0).sum(1) / size.sum(1)


def spearman_brown(half: float) -> float:
    """Reliability of the whole from the correlation of its halves, 2ρ / (1 + ρ) (Spearman 1910; Brown 1910)."""
    return 2 * half / (1 + half)


def tie_breaks(
    generators: Sequence[torch.Generator], mask: Bool[Tensor, "batch response"], draws: int
) -> Float[Tensor, "draw batch response"]:
    """Uniform numbers to order equal credit by, a row's from its own generator; further padding only appends some."""
    drawn = [torch.rand(mask.shape[1], draws, generator=generator).T for generator in generators]
    return torch.stack(drawn, dim=1).to(mask.device)
