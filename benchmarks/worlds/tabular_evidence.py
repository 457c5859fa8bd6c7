"""The evidence that a tabular world gives to redistributors.

Attention is made up: every row of it is drawn for the prefix that a causal model would have read by then, so that it
depends on those tokens and no later ones.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.worlds.tabular import PROMPT, Tokens, World, distributions, generator, token_logprobs
from benchmarks.worlds.tabular_probe import ABILITIES, TabularProbe
from rlhf_core.evidence import (
    AttentionTap,
    AuxiliaryLogprobs,
    ContinuationValues,
    EvidenceRequest,
    FullKL,
    HiddenTap,
    Layout,
    SentenceEnds,
    TokenEntropy,
    ValueTap,
)
from rlhf_core.probe import Experiment, measured
from rlhf_core.types import Redistributor

HEADS = 2


class Unanswerable(Exception):
    """Evidence that no table can give; says which and why."""


def evidence_for(world: World, redistributor: Redistributor) -> dict[EvidenceRequest, Tensor]:
    """The world's answer to every need.

    Raises:
        Unanswerable: a request of a kind that a table has no answer to.
    """
    return {request: answer(world, request) for request in redistributor.needs}


def answer(world: World, request: EvidenceRequest) -> Tensor:
    """Dispatches on the kind of request; raises like :func:`evidence_for`."""
    for kind, measure in ANSWERS.items():
        if isinstance(request, kind):
            return measure(world, request)
    raise Unanswerable(f"a table has no answer to {type(request).__name__}")


def layout_of(world: World, request: EvidenceRequest) -> Layout:
    """One prompt token, so response token t (from 0) stands in column t + 1."""
    mask = world.sequences.response_mask
    last = mask.sum(1)
    return Layout(
        response_positions=torch.where(mask, torch.arange(mask.shape[1]) + 1, 0),
        response_mask=mask,
        read_positions=last if request.source == "reward" else last - 1,
    )


def attention(world: World, request: AttentionTap) -> Float[Tensor, "batch head query key"]:
    """Attention after softmax of every query on the keys up to itself, in float64."""
    width = world.sequences.response_mask.shape[1] + 1
    maps = np.zeros((len(world.responses), HEADS, width, width))
    for row, response in enumerate(world.responses):
        for query in range(len(response) + 1):
            prefix = (PROMPT, *response[:query])
            maps[row, :, query, : query + 1] = _attention_row(world.seed, request, prefix)
    return torch.from_numpy(maps)


@lru_cache(maxsize=100_000)
def _attention_row(seed: int, request: AttentionTap, prefix: Tokens) -> np.ndarray:
    # Other layers are other draws; a layer counted from the end is one too.
    stream = generator(seed, f"{request.source} {request.layer}", *prefix)
    weights = np.exp(stream.normal(size=(HEADS, len(prefix))))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _tapped(world: World, request: AttentionTap) -> Float[Tensor, "batch response"]:
    """The tap's own reduction of the rows it names, as a model would call it."""
    layout, maps = layout_of(world, request), attention(world, request)
    rows = request.rows(layout)
    chosen = maps.gather(2, rows.clamp(min=0)[:, None, :, None].expand(-1, HEADS, -1, maps.shape[3]))
    weights = torch.where(rows[:, None, :, None] >= 0, chosen, 0)
    return request.finish(request.reduce(weights, rows, layout), _seen_by(rows, layout))


def _seen_by(rows: Int[Tensor, "batch row"], layout: Layout) -> Int[Tensor, "batch response"]:
    sees = (rows[:, :, None] >= layout.response_positions[:, None, :]) & (rows[:, :, None] >= 0)
    return torch.where(layout.response_mask, sees.sum(1), 0)


def _full_kl(world: World, request: FullKL) -> Float[Tensor, "batch response"]:
    ours, theirs = (distributions(world, logits) for logits in (world.logits, world.ref_logits))
    ratio = torch.where(ours.isfinite(), ours - theirs, 0)
    return torch.where(world.sequences.response_mask, (ours.exp() * ratio).sum(-1), 0)


def _hidden(world: World, request: HiddenTap) -> Tensor:
    """Of the state before a token a table knows the score only, so that is its hidden state, and its head reads it."""
    states = TabularProbe(world=world).prefix_scores()[..., None]
    answer = request.read(states, lambda hidden: hidden[..., 0])
    return torch.where(world.sequences.response_mask.reshape(*states.shape[:2], *[1] * (answer.ndim - 2)), answer, 0)


def _experiment(world: World, request: Experiment) -> Tensor:
    unable = sorted(request.uses - ABILITIES)
    if request.source != "reward" or unable:
        wanted = f" with {', '.join(unable)}" if unable else ""
        raise Unanswerable(f"a table cannot measure {type(request).__name__} on the {request.source}{wanted}")
    return measured(request, TabularProbe(world=world))


def _entropy(world: World, request: TokenEntropy) -> Float[Tensor, "batch response"]:
    logprobs = distributions(world, world.logits)
    entropy = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)
    return torch.where(world.sequences.response_mask, entropy, 0)


def _sentence_ends(world: World, request: SentenceEnds) -> Float[Tensor, "batch response"]:
    """The first word is the one that ends a sentence."""
    return torch.where(world.sequences.response_mask, (world.sequences.response_ids == 1).double(), 0)


def _continuation_values(world: World, request: ContinuationValues) -> Float[Tensor, "batch response 2"]:
    """Of all continuations, each as often as the policy draws it: the exact values, of which no token was drawn."""
    values = world.state_means(world.raw_scores[:, None].expand_as(world.states).double())
    exact = torch.where(request.at(world.sequences.response_mask), values, 0)
    return torch.stack([exact, torch.zeros_like(exact)], dim=2)


def _auxiliary(world: World, request: AuxiliaryLogprobs) -> Float[Tensor, "batch response"]:
    """A third policy, drawn for the auxiliary's name."""
    drawn = generator(world.seed, f"auxiliary {request.name}").normal(size=tuple(world.logits.shape))
    return token_logprobs(world, torch.from_numpy(drawn))


def _no_values(world: World, request: ValueTap) -> Tensor:
    raise Unanswerable("a table has no value vectors")


ANSWERS: Mapping[type[EvidenceRequest], Callable[[World, Any], Tensor]] = {
    ValueTap: _no_values,  # a special attention tap, so it stands before it
    AttentionTap: _tapped,
    HiddenTap: _hidden,
    Experiment: _experiment,
    FullKL: _full_kl,
    TokenEntropy: _entropy,
    SentenceEnds: _sentence_ends,
    ContinuationValues: _continuation_values,
    AuxiliaryLogprobs: _auxiliary,
}
