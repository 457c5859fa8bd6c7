"""Each speed-up of the engine beside what it replaces: the work of ``benchmarks.levers``.

A lever is a name, the name of its alternative, and a pass of each.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, autograd, nn
from tqdm import tqdm
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

from benchmarks.cost.gpt2_sizes import SIZES, gpt2_of
from benchmarks.cost.paired_timing import CPU, Pass, median_ratio, paired_seconds, peak_bytes
from benchmarks.reporting.tables import Table, Value
from models.passes.distribution import Distribution, Targets, entropy, token_distribution
from models.passes.fused import VocabularyHead, share_tied_gradient
from models.passes.sampling import CachedDecoder, sample_responses
from models.passes.token_statistics import recomputed_statistics, token_statistics
from rlhf_core.types import Limits

Lever = tuple[str, str, Pass, Pass]
TOKENS: Mapping[str, tuple[int, int]] = {"gpt2": (1024, 64), "small": (64, 8)}
"""Response tokens of a micro-batch, and of the longest response."""


def model_of(layers: int, hidden: int, vocab: int) -> PreTrainedModel:
    """Random weights, no dropout."""
    model: PreTrainedModel = GPT2LMHeadModel(gpt2_of(layers, hidden, vocab)).train(False)
    return model


def levers(size: str) -> Iterator[Lever]:
    """Every lever in turn: its name, its alternative's name, our pass, and the alternative's."""
    hidden, vocab, (tokens, longest) = SIZES[size]["hidden"], SIZES[size]["vocab"], TOKENS[size]
    model = model_of(**SIZES[size])
    yield from statistics_levers(hidden, vocab, tokens)
    yield "keys and values written in place", "concatenated at every token", *sampling(model, longest)

    head = nn.Linear(hidden, vocab, bias=False)
    half, whole = (torch.randn(n, hidden, requires_grad=True) for n in (tokens // 2, tokens))
    yield "head on response positions", "on every position (half prompt)", summed(head, half), summed(head, whole)

    plain = nn.Linear(hidden, vocab, bias=False).requires_grad_(False)
    in_parts = VocabularyHead(cast(nn.Parameter, plain.weight))
    for rows in (16, tokens):  # as in sampling and in a teacher-forced pass
        given = torch.randn(rows, hidden)
        yield f"head in parts of the vocabulary, {rows} tokens", "in one product", *applied(in_parts, plain, given)

    inner = torch.randn(tokens, 4 * hidden, requires_grad=True)
    ours, theirs = summed(GELUTanh(), inner), summed(NewGELUActivation(), inner)
    yield "fused activations", "operation by operation", ours, theirs
    yield "tied gradient written once", "as two dense matrices", *tied_gradients(hidden, vocab)

    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    fused, default = (torch.optim.Adam(model.parameters(), lr=0.0, fused=wanted) for wanted in (True, None))
    yield "fused Adam", "torch's default Adam", fused.step, default.step

    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    yield (
        "gradient norm alone",
        "clip_grad_norm_ without a limit",
        lambda: nn.utils.get_total_norm(gradients),
        lambda: nn.utils.clip_grad_norm_(model.parameters(), float("inf")),
    )


def summed(layer: nn.Module, given: Tensor) -> Pass:
    """Forward and backward pass of one layer."""
    return lambda: autograd.backward(layer(given).sum())


def applied(ours: nn.Module, theirs: nn.Module, given: Tensor) -> tuple[Pass, Pass]:
    """Forward pass of both layers."""
    return lambda: ours(given), lambda: theirs(given)


def statistics_levers(hidden: int, vocab: int, tokens: int) -> Iterator[Lever]:
    """Log-probability and entropy, forward and backward; only the log-probability has a gradient."""
    head = nn.Linear(hidden, vocab, bias=False)
    states = torch.randn(tokens, hidden, requires_grad=True)
    count = torch.arange(tokens)
    targets = Targets(tokens=count % vocab, steps=count, min_lengths=torch.zeros_like(count))
    distribution = Distribution(eos_ids=(0,), temperature=1.0)

    def plain() -> None:
        every = token_distribution(head(states), (0,), targets.steps, targets.min_lengths, 1.0)
        entropy(every)
        autograd.backward(every.gather(1, targets.tokens[:, None]).sum())

    def ours() -> None:
        autograd.backward(token_statistics(head(states), targets, distribution)[0].sum())

    def recomputed() -> None:
        autograd.backward(recomputed_statistics(states, head, vocab, targets, distribution)[0].sum())

    yield "own backward pass of log-probabilities", "autograd", ours, plain
    yield "logits made again, in parts", "autograd", recomputed, plain


def sampling(model: PreTrainedModel, longest: int) -> tuple[Pass, Pass]:
    """16 responses of the same length."""
    prompts = [[5, 6, 7]] * 16
    lengths = torch.full((16,), longest)
    uniforms = torch.rand(16, longest, dtype=torch.float64)
    limits = Limits(min_lengths=lengths, max_lengths=lengths)

    def with_room(room: int) -> Tensor:
        decoder = CachedDecoder(model, room=torch.full((16,), room))
        drawn = sample_responses(decoder, prompts, limits, uniforms, eos_ids=(0,), temperature=1.0, device=CPU)
        return drawn.response_ids

    return lambda: with_room(longest), lambda: with_room(0)


def tied_gradients(hidden: int, vocab: int) -> tuple[Pass, Pass]:
    """Forward and backward of both embeddings of a model without layers, over the 16 tokens of one response."""
    plain = model_of(0, hidden, vocab)
    ours = deepcopy(plain)
    share_tied_gradient(ours)
    ids = torch.arange(16)[None]

    def work(model: Any) -> Pass:
        def step() -> None:
            model.zero_grad(set_to_none=True)
            autograd.backward(model(input_ids=ids, use_cache=False).logits.sum())

        return step

    return work(ours), work(plain)


def line(lever: Lever, seconds: float) -> tuple[Value, ...]:
    """One row of the table."""
    name, alternative, ours, theirs = lever
    ours()
    theirs()
    mine, other, again = paired_seconds((ours, theirs, ours), seconds)
    memory = (peak_bytes(work) / 2**20 for work in (ours, theirs))
    return name, alternative, median_ratio(other, mine), median_ratio(again, mine), *memory


def lever_table(size: str, seconds: float) -> Table:
    """Time every lever against its alternative on one thread, for so many CPU seconds each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = tqdm(levers(size), total=10, desc="levers", unit="lever", dynamic_ncols=True, disable=None)
    columns = ("lever", "against", "time ratio", "A/A", "MiB, ours", "MiB, theirs")
    rows = tuple(line(lever, seconds) for lever in found)
    notes = (
        "Time ratio: the alternative's CPU seconds divided by ours, median of pairs [95 % bootstrap interval].",
        "A/A: ours divided by ours in the same way, which shows the noise.",
    )
    return Table(title="what each lever is worth", columns=columns, rows=rows, notes=notes)
