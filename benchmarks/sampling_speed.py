"""How fast is sampling, against ``generate`` one prompt at a time and against ``generate`` on a left-padded batch?

All draw responses of the same ragged lengths from the same GPT-2 shaped model with random weights. The published loop
is one alternative: one prompt at a time, every attention map kept; on the transformers that is installed, and, with
``--against trl-0.7.4``, in the published stack. The other is transformers at its best: all prompts at once under SDPA;
its batch goes on until the longest response ends. Before anything is timed, those on our transformers draw with our
uniform numbers and must come to our tokens.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification, LogitsProcessor

from benchmarks.base.command_line import parse
from benchmarks.base.run_folder import measurement_folder
from benchmarks.base.settings_checks import require_at_least, require_known
from benchmarks.cost.engine_processes import published, require_published_python
from benchmarks.cost.gpt2_sizes import SIZES, gpt2_of
from benchmarks.cost.paired_timing import CPU, Timed, in_turn, median_ratio, timed
from benchmarks.cost.timed_step import Case, saved
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value
from models.passes.fused import make_lean
from models.passes.sampling import CachedDecoder, inverse_cdf, left_padded, sample_responses
from models.tiny import EOS_ID
from rlhf_core.random_streams import stream
from rlhf_core.run.freed_memory import keep_freed_memory
from rlhf_core.types import Limits

ANY_LENGTH: Mapping[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "suppress_tokens": [EOS_ID]}
LENGTHS: Mapping[str, tuple[int, int]] = {"short": (8, 15), "long": (100, 200)}
DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is drawn."""

    lengths: tuple[str, ...] = tuple(LENGTHS)
    """Responses: short (8 to 15 tokens), long (100 to 200)."""
    prompts: int = 16
    """Prompts of 2 to 8 tokens."""
    size: Literal["gpt2", "small"] = "gpt2"
    """Shape of the model: GPT-2 124M's, or one for a first try."""
    repeats: int = 5
    """Passes of each kind, 2 or more."""
    against: Literal["nothing", "trl-0.7.4"] = "nothing"
    """The stack the paper was published on; in an environment of its own."""
    published_python: str = ""
    """Interpreter of the published stack's environment (DIR/bin/python; left out, the error says how to make one)."""
    out: str = "sampling_speed"
    """Folder for the table."""
    overwrite: bool = False
    """Delete an earlier measurement in ``out``."""

    def __post_init__(self) -> None:
        require_known(self, lengths=LENGTHS)
        require_at_least(self, prompts=1, repeats=2)
        require_published_python(self.against, self.published_python)


class DrawsWith(LogitsProcessor):
    """Leaves one token a row: the one that our uniform numbers decide on."""

    def __init__(self, prompt: int, uniforms: Tensor) -> None:
        self._prompt, self._uniforms = prompt, uniforms

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits, minus infinity but for one."""
        scores[:, EOS_ID] = -torch.inf
        tokens = inverse_cdf(scores.log_softmax(-1), self._uniforms[:, input_ids.shape[1] - self._prompt])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


class Samplers:
    """Three ways to draw the same work."""

    def __init__(self, settings: Settings, closed: tuple[int, int]) -> None:
        size = SIZES[settings.size]
        generator = stream(settings.prompts, "sampling")
        self.prompts = [
            generator.integers(EOS_ID + 1, size["vocab"], size=length).tolist()
            for length in generator.integers(2, 9, settings.prompts)
        ]
        self.lengths = torch.from_numpy(generator.integers(*closed, endpoint=True, size=settings.prompts))
        self.uniforms = torch.from_numpy(generator.random((settings.prompts, closed[1])))
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
        """The two on our transformers; with ``same=True`` they draw with our uniform numbers."""
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
        """Raises RuntimeError unless all three come to the same tokens by the same uniform numbers."""
        mine = self.ours()
        for name, draw in self.alternatives.items():
            if mine != draw(same=True):
                raise RuntimeError(f"{name} draws other tokens than ours from the same uniforms: not the same work")


@contextmanager
def published_seconds(samplers: Samplers, settings: Settings) -> Iterator[dict[str, Timed]]:
    """The published stack on the same weights, in a process of its own; nothing where it is not asked for."""
    if settings.against == "nothing":
        yield {}
        return
    case = Case(prompts=settings.prompts, minibatch_size=settings.prompts)
    lengths = samplers.lengths.tolist()
    with tempfile.TemporaryDirectory() as folder:
        shape = gpt2_of(**SIZES[settings.size], dropout=DROPOUT, num_labels=2, pad_id=EOS_ID)
        folders = saved(Path(folder), samplers.model, GPT2ForSequenceClassification(shape))
        with published(case, folders, "as run", python=settings.published_python) as ask:

            def seconds() -> float:
                answer = ask(do="generate", prompts=samplers.prompts, lengths=lengths)
                if answer["lengths"] != lengths:
                    raise RuntimeError(f"{settings.against} drew {answer['lengths']} tokens, not {lengths}")
                return float(answer["cpu_seconds"])

            yield {f"one by one, with attentions, {settings.against}": seconds}


def lines(name: str, settings: Settings) -> Iterator[tuple[Value, ...]]:
    """Rows of the table, one an alternative."""
    samplers = Samplers(settings, LENGTHS[name])
    samplers.require_same_tokens()
    mine = timed(samplers.ours)
    others = {kind: timed(draw) for kind, draw in samplers.alternatives.items()}
    with published_seconds(samplers, settings) as published_ones:
        others |= {**published_ones, "ours again": mine}
        first, *rest = in_turn([mine, *others.values()], lambda taken: len(taken[0]) < settings.repeats)
    tokens = int(samplers.lengths.sum())
    for kind, seconds in zip(others, rest, strict=True):
        yield name, kind, median_ratio(seconds, first), tokens / float(np.median(seconds)), len(seconds)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, "benchmarks.sampling_speed", argv)
    out = measurement_folder(settings, "benchmarks.sampling_speed")
    torch.set_num_threads(1)
    keep_freed_memory()
    asked = tqdm(settings.lengths, desc="lengths", unit="length", dynamic_ncols=True)
    columns = ("responses", "against ours", "time ratio", "tokens/s", "passes")
    rows = tuple(line for name in asked for line in lines(name, settings))
    note = "Ratio: the alternative's CPU seconds over ours, median of passes taken in turn [95 % bootstrap interval]."
    publish(Table(title="sampling", columns=columns, rows=rows, notes=(note,)), {}, out, Console())


if __name__ == "__main__":
    main()
