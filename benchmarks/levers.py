"""What each lever of the engine is worth alone: ours and a named alternative, in turn, one thread.

Sizes are GPT-2 124M's, a micro-batch of 1,024 response tokens and responses of 64. ``--size small`` is for a first
try. The allocator's lever is a case of ``benchmarks.throughput`` (default-allocator): it belongs to a whole process.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

from benchmarks.base.cli import measurement_folder, parse
from benchmarks.cost.pairing import CPU, Pass, median_ratio, paired_seconds, peak_bytes
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value
from models.passes.distribution import Distribution, Targets, entropy, token_distribution
from models.passes.fused import VocabularyHead, share_tied_gradient
from models.passes.sampling import CachedDecoder, sample_responses
from models.passes.token_statistics import recomputed_statistics, token_statistics
from rlhf_core.run.allocation import keep_freed_memory
from rlhf_core.types import Limits

Work = tuple[str, str, Pass, Pass]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much to measure."""

    size: Literal["gpt2", "small"] = "gpt2"
    """Shapes: GPT-2 124M's, or some that take seconds."""
    seconds: float = 60.0
    """CPU seconds to spend on a lever; never fewer than 5 passes of each kind, nor more than 60."""
    out: str = "levers"
    """Folder for the table."""
    overwrite: bool = False
    """Delete an earlier measurement in ``out``."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the work."""

    hidden: int
    layers: int
    vocab: int
    tokens: int
    """Response tokens of a micro-batch."""
    longest: int
    """Longest response."""


SHAPES: Mapping[str, Shape] = {
    "gpt2": Shape(hidden=768, layers=12, vocab=50_257, tokens=1024, longest=64),
    "small": Shape(hidden=64, layers=2, vocab=512, tokens=64, longest=8),
}


def model_of(shape: Shape) -> PreTrainedModel:
    """Random weights, no dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab,
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=shape.hidden // 64,
            n_positions=1024,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()


def levers(shape: Shape) -> Iterator[Work]:
    """Lever, alternative, ours, and the alternative."""
    model = model_of(shape)
    yield from statistics_levers(shape)
    yield "keys and values written in place", "concatenated at every token", *sampling(shape, model)
    yield "head on response positions", "on every position (half prompt)", *heads(shape)
    for tokens in (16, shape.tokens):
        yield f"head in parts of the vocabulary, {tokens} tokens", "in one product", *partial_heads(shape, tokens)
    yield "fused activations", "operation by operation", *activations(shape)
    yield "tied gradient written once", "as two dense matrices", *tied_gradients(shape)
    yield "fused Adam", "torch's default Adam", *optimizers(model)
    yield "gradient norm alone", "clip_grad_norm_ without a limit", *norms(model)


def statistics_levers(shape: Shape) -> Iterator[Work]:
    """Log-probability and entropy, forward and backward, of which only the log-probability is used."""
    head = nn.Linear(shape.hidden, shape.vocab, bias=False)
    hidden = torch.randn(shape.tokens, shape.hidden, requires_grad=True)
    count = torch.arange(shape.tokens)
    targets = Targets(tokens=count % shape.vocab, steps=count, min_lengths=torch.zeros_like(count))
    distribution = Distribution(eos_ids=(0,), temperature=1.0)

    def autograd() -> None:
        every = token_distribution(head(hidden), (0,), targets.steps, targets.min_lengths, 1.0)
        entropy(every)
        every.gather(1, targets.tokens[:, None]).sum().backward()

    def ours() -> None:
        token_statistics(head(hidden), targets, distribution)[0].sum().backward()

    def recomputed() -> None:
        recomputed_statistics(hidden, head, shape.vocab, targets, distribution)[0].sum().backward()

    yield "own backward pass of log-probabilities", "autograd", ours, autograd
    yield "logits made again, in parts", "autograd", recomputed, autograd


def sampling(shape: Shape, model: PreTrainedModel) -> tuple[Pass, Pass]:
    """16 responses of the same length."""
    prompts = [[5, 6, 7]] * 16
    lengths = torch.full((16,), shape.longest)
    uniforms = torch.rand(16, shape.longest, dtype=torch.float64)

    def with_room(room: int) -> Callable[[], Any]:
        def work() -> Any:
            decoder = CachedDecoder(model, room=torch.full((16,), room))
            limits = Limits(min_lengths=lengths, max_lengths=lengths)
            return sample_responses(
                decoder, prompts, limits, uniforms, eos_ids=(0,), temperature=1.0, device=CPU
            ).response_ids

        return work

    return with_room(shape.longest), with_room(0)


def heads(shape: Shape) -> tuple[Pass, Pass]:
    """Forward and backward of the head alone."""
    head = nn.Linear(shape.hidden, shape.vocab, bias=False)
    responses, everything = (
        torch.randn(n, shape.hidden, requires_grad=True) for n in (shape.tokens // 2, shape.tokens)
    )
    return lambda: head(responses).sum().backward(), lambda: head(everything).sum().backward()


def partial_heads(shape: Shape, tokens: int) -> tuple[Pass, Pass]:
    """The head alone, forward, as in sampling and in a teacher-forced pass."""
    plain = nn.Linear(shape.hidden, shape.vocab, bias=False).requires_grad_(False)
    ours, hidden = VocabularyHead(plain.weight), torch.randn(tokens, shape.hidden)
    return lambda: ours(hidden), lambda: plain(hidden)


def activations(shape: Shape) -> tuple[Pass, Pass]:
    """GPT-2's activation, forward and backward."""
    inner = torch.randn(shape.tokens, 4 * shape.hidden, requires_grad=True)
    fused, written_out = GELUTanh(), NewGELUActivation()
    return lambda: fused(inner).sum().backward(), lambda: written_out(inner).sum().backward()


def tied_gradients(shape: Shape) -> tuple[Pass, Pass]:
    """Forward and backward of both embeddings of a model without layers, over the 16 tokens of one response."""
    plain = model_of(replace(shape, layers=0))
    ours = deepcopy(plain)
    share_tied_gradient(ours)
    ids = torch.arange(16)[None]

    def work(model: Any) -> Pass:
        def step() -> None:
            model.zero_grad(set_to_none=True)
            model(input_ids=ids, use_cache=False).logits.sum().backward()

        return step

    return work(ours), work(plain)


def optimizers(model: PreTrainedModel) -> tuple[Pass, Pass]:
    """One step on gradients that are there."""
    _give_gradients(model)
    fused, default = (torch.optim.Adam(model.parameters(), lr=0.0, fused=wanted) for wanted in (True, None))
    return fused.step, default.step


def norms(model: PreTrainedModel) -> tuple[Pass, Pass]:
    """The 2-norm of all gradients."""
    _give_gradients(model)
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    return (
        lambda: torch.nn.utils.get_total_norm(gradients),
        lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")),
    )


def _give_gradients(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)


def line(work: Work, seconds: float) -> tuple[Value, ...]:
    """A row of the table: the alternative over ours."""
    name, alternative, ours, theirs = work
    ours()
    theirs()
    mine, other, again = paired_seconds((ours, theirs, ours), seconds)
    return (
        name,
        alternative,
        median_ratio(other, mine),
        median_ratio(again, mine),
        peak_bytes(ours) / 2**20,
        peak_bytes(theirs) / 2**20,
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, "benchmarks.levers", argv)
    out = measurement_folder(settings, "benchmarks.levers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    found = tqdm(levers(SHAPES[settings.size]), total=10, desc="levers", unit="lever", dynamic_ncols=True)
    table = Table(
        title="what each lever is worth",
        columns=("lever", "against", "time ratio", "A/A", "MiB, ours", "MiB, theirs"),
        rows=tuple(line(work, settings.seconds) for work in found),
        notes=("Ratio: the alternative's CPU seconds over ours, median of pairs [95 % bootstrap interval].",),
    )
    publish(table, {}, out, Console())


if __name__ == "__main__":
    main()
