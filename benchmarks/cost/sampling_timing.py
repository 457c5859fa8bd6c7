"""Three ways to draw the same responses, timed in turn: the work of ``benchmarks.sampling_speed``.

Before anything is timed, the alternatives draw with our uniform numbers and must come to our tokens.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification, LogitsProcessor

from benchmarks.cost.cases import Case
from benchmarks.cost.engine_processes import PublishedStack, published
from benchmarks.cost.gpt2_sizes import SIZES, gpt2_of
from benchmarks.cost.paired_timing import CPU, Timed, in_turn, median_ratio, timed
from benchmarks.cost.timed_step import saved
from benchmarks.reporting.tables import Table, Value
from models.passes.fused import make_lean
from models.passes.sampling import CachedDecoder, inverse_cdf, left_padded, sample_responses
from models.tiny import EOS_ID
from rlhf_core.random_streams import stream
from rlhf_core.types import Limits

ANY_LENGTH: Mapping[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "suppress_tokens": [EOS_ID]}
DROPOUT = 0.1


class DrawsWith(LogitsProcessor):
    """Leaves one token per row: the one that our uniform numbers choose."""

    def __init__(self, prompt: int, uniforms: Tensor) -> None:
        self._prompt, self._uniforms = prompt, uniforms

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits: 0 for that token, minus infinity for all others."""
        scores[:, EOS_ID] = -torch.inf
        tokens = inverse_cdf(scores.log_softmax(-1), self._uniforms[:, input_ids.shape[1] - self._prompt])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


class Samplers:
    """Three ways to draw the same work."""

    def __init__(self, size: Mapping[str, int], prompts: int, lengths: tuple[int, int]) -> None:
        self.size = size
        generator = stream(prompts, "sampling")
        self.prompts = [
            generator.integers(EOS_ID + 1, size["vocab"], size=length).tolist()
            for length in generator.integers(2, 9, prompts)
        ]
        self.lengths = torch.from_numpy(generator.integers(*lengths, endpoint=True, size=prompts))
        self.uniforms = torch.from_numpy(generator.random((prompts, lengths[1])))
        torch.manual_seed(0)
        factory: Any = AutoModelForCausalLM
        self.model, self._eager, self._lean = (
            factory.from_config(gpt2_of(**size, dropout=DROPOUT), attn_implementation=attention).eval()
            for attention in ("sdpa", "eager", "sdpa")
        )
        for copy in (self._eager, self._lean):
            copy.load_state_dict(self.model.state_dict(), assign=True)
        make_lean(self._lean)

    @property
    def alternatives(self) -> Mapping[str, Callable[..., list[list[int]]]]:
        """The two that run on the installed transformers; with ``same=True`` they draw with our uniform numbers."""
        return {"one by one, with attentions": self.one_by_one, "left-padded batch": self.left_padded}

    def ours(self) -> list[list[int]]:
        """Finished rows leave the batch; keys and values are written in place."""
        sequences = sample_responses(
            CachedDecoder(self._lean, room=self.lengths),
            self.prompts,
            Limits(min_lengths=self.lengths, max_lengths=self.lengths),
            self.uniforms,
            eos_ids=(EOS_ID,),
            temperature=1.0,
            device=CPU,
        )
        return sequences.responses()

    def one_by_one(self, *, same: bool = False) -> list[list[int]]:
        """The published loop."""
        rows = (slice(row, row + 1) for row in range(len(self.prompts)))
        return [drawn for row in rows for drawn in self._generated(self._eager, row, same, output_attentions=True)]

    def left_padded(self, *, same: bool = False) -> list[list[int]]:
        """One call of ``generate``; as EOS is banned, every row goes on to the longest length, and is cut after."""
        return self._generated(self.model, slice(None), same)

    def _generated(self, model: Any, rows: slice, same: bool, **further: Any) -> list[list[int]]:
        """Responses to some of the prompts by ``generate``; by our uniform numbers where they are to be the same."""
        ids, mask = left_padded(self.prompts[rows], CPU)
        prompt, lengths = ids.shape[1], self.lengths[rows]
        found: Any = model.generate(
            ids,
            attention_mask=mask.long(),
            max_new_tokens=int(lengths.max()),
            pad_token_id=EOS_ID,
            logits_processor=[DrawsWith(prompt, self.uniforms[rows])] if same else [],
            return_dict_in_generate=True,
            **ANY_LENGTH,
            **further,
        )
        drawn = found.sequences[:, prompt:].tolist()
        return [row[:length] for row, length in zip(drawn, lengths.tolist(), strict=True)]

    def require_same_tokens(self) -> None:
        """Raise RuntimeError unless all three draw the same tokens from the same uniform numbers."""
        mine = self.ours()
        for name, draw in self.alternatives.items():
            if mine != draw(same=True):
                raise RuntimeError(f"{name} draws other tokens than ours from the same uniforms: not the same work")


@contextmanager
def published_seconds(samplers: Samplers, stack: PublishedStack | None) -> Iterator[dict[str, Timed]]:
    """The published stack on the same weights, in a process of its own; an empty mapping without one."""
    if stack is None:
        yield {}
        return
    rows = len(samplers.prompts)
    case = Case(prompts=rows, minibatch_size=rows)
    lengths = samplers.lengths.tolist()
    with tempfile.TemporaryDirectory() as folder:
        shape = gpt2_of(**samplers.size, dropout=DROPOUT, num_labels=2, pad_id=EOS_ID)
        models = saved(Path(folder), samplers.model, GPT2ForSequenceClassification(shape))
        with published(stack, "as run", case, models) as ask:

            def seconds() -> float:
                answer = ask(do="generate", prompts=samplers.prompts, lengths=lengths)
                if answer["lengths"] != lengths:
                    raise RuntimeError(f"{stack.name} drew {answer['lengths']} tokens, not {lengths}")
                return float(answer["cpu_seconds"])

            yield {f"one by one, with attentions, {stack.name}": seconds}


def lines(name: str, samplers: Samplers, repeats: int, stack: PublishedStack | None) -> Iterator[tuple[Value, ...]]:
    """Rows of the table, one for each alternative."""
    samplers.require_same_tokens()
    mine = timed(samplers.ours)
    others = {kind: timed(draw) for kind, draw in samplers.alternatives.items()}
    with published_seconds(samplers, stack) as published_ones:
        others |= {**published_ones, "ours again": mine}
        first, *rest = in_turn([mine, *others.values()], lambda taken: len(taken[0]) < repeats)
    tokens = int(samplers.lengths.sum())
    for kind, seconds in zip(others, rest, strict=True):
        yield name, kind, median_ratio(seconds, first), tokens / float(np.median(seconds)), len(seconds)


def sampling_table(
    lengths: Mapping[str, tuple[int, int]], *, size: str, prompts: int, repeats: int, stack: PublishedStack | None
) -> Table:
    """Time every way to sample on responses of each range of ``lengths``, on one thread.

    Raises:
        RuntimeError: an alternative draws other tokens than ours, or the published stack ended.
    """
    torch.set_num_threads(1)
    asked = tqdm(lengths.items(), desc="lengths", unit="length", dynamic_ncols=True, disable=None)
    rows = tuple(
        line for name, closed in asked for line in lines(name, Samplers(SIZES[size], prompts, closed), repeats, stack)
    )
    columns = ("responses", "against ours", "time ratio", "tokens/s", "passes")
    note = "Time ratio: the alternative's CPU seconds divided by ours, median of passes [95 % bootstrap interval]."
    return Table(title="sampling", columns=columns, rows=rows, notes=(note,))
