"""How fast is sampling, against ``generate`` one prompt at a time and against ``generate`` on a left-padded batch?

All draw responses of the same ragged lengths from the same GPT-2 shaped model with random weights. The published loop
is one alternative: one prompt at a time, every attention map kept; on the transformers that is installed, and, with
``--against trl-0.7.4``, in the published stack. The other is transformers at its best: all prompts at once under SDPA;
its batch goes on until the longest response ends. Before anything is timed, those on our transformers draw with our
uniform numbers and must come to our tokens.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification, LogitsProcessor, StoppingCriteria

from benchmarks.base.command_line import parse
from benchmarks.base.run_folder import measurement_folder
from benchmarks.cost.engine_processes import published, require_published_python
from benchmarks.cost.paired_timing import CPU, Timed, in_turn, median_ratio, seconds_of
from benchmarks.cost.timed_step import Case, saved
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value
from models.passes.fused import make_lean
from models.passes.sampling import CachedDecoder, inverse_cdf, left_padded, sample_responses
from models.tiny import EOS_ID, gpt2_config
from rlhf_core.random_streams import stream
from rlhf_core.run.freed_memory import keep_freed_memory
from rlhf_core.types import Limits

ANY_LENGTH: Mapping[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "suppress_tokens": [EOS_ID]}
LENGTHS: Mapping[str, tuple[int, int]] = {"short": (8, 15), "long": (100, 200)}
SIZES: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"n_layers": 12, "hidden_size": 768, "n_heads": 12, "vocab_size": 50_257},
    "small": {"n_layers": 2, "hidden_size": 64, "n_heads": 1, "vocab_size": 512},
}
SHAPE = partial(gpt2_config, context=1024, dropout=0.1)
ALTERNATIVES = ("one by one, with attentions", "left-padded batch")


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
        unknown = [name for name in self.lengths if name not in LENGTHS]
        if unknown or not self.lengths or self.prompts < 1 or self.repeats < 2:
            raise ValueError(
                f"lengths must be of {', '.join(LENGTHS)}, prompts 1 or more, repeats 2 or more; got {self.lengths}, "
                f"{self.prompts} and {self.repeats}"
            )
        require_published_python(self.against, self.published_python)


class EndsAt(StoppingCriteria):
    """Ends every row of a batch at its own length."""

    def __init__(self, prompts: list[list[int]], lengths: Tensor) -> None:
        self._ends = max(map(len, prompts)) + lengths

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Which rows are done."""
        return input_ids.shape[1] >= self._ends


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
        vocab = SIZES[settings.size]["vocab_size"]
        generator = stream(settings.prompts, "sampling")
        self.prompts = [
            generator.integers(EOS_ID + 1, vocab, size=n).tolist() for n in generator.integers(2, 9, settings.prompts)
        ]
        self.lengths = torch.from_numpy(generator.integers(*closed, endpoint=True, size=settings.prompts))
        self.uniforms = torch.from_numpy(generator.random((settings.prompts, closed[1])))
        torch.manual_seed(0)
        factory: Any = AutoModelForCausalLM
        self.model, self._eager, self._lean = (
            factory.from_config(SHAPE(**SIZES[settings.size]), attn_implementation=attention).eval()
            for attention in ("sdpa", "eager", "sdpa")
        )
        for copy in (self._eager, self._lean):
            copy.load_state_dict(self.model.state_dict(), assign=True)
        make_lean(self._lean)

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
        keeping: dict[str, Any] = {"output_attentions": True, "return_dict_in_generate": True}
        rows = (slice(row, row + 1) for row in range(len(self.prompts)))
        return [drawn for row in rows for drawn in self._generated(self._eager, row, same, [], **keeping)]

    def left_padded(self, *, same: bool = False) -> list[list[int]]:
        """One call of ``generate``."""
        return self._generated(self.model, slice(None), same, [EndsAt(self.prompts, self.lengths)])

    def _generated(
        self, model: Any, rows: slice, same: bool, criteria: list[StoppingCriteria], **more: Any
    ) -> list[list[int]]:
        """Responses to some of the prompts by ``generate``; by our uniform numbers where they are to be the same."""
        ids, mask = left_padded(self.prompts[rows], CPU)
        prompt, lengths = ids.shape[1], self.lengths[rows]
        found: Any = model.generate(
            ids,
            attention_mask=mask.long(),
            max_new_tokens=int(lengths.max()),
            pad_token_id=EOS_ID,
            stopping_criteria=criteria,
            logits_processor=[DrawsWith(prompt, self.uniforms[rows])] if same else [],
            **ANY_LENGTH,
            **more,
        )
        drawn = (found.sequences if more else found)[:, prompt:].tolist()
        return [row[:length] for row, length in zip(drawn, lengths.tolist(), strict=True)]

    def require_same_tokens(self) -> None:
        """Raises RuntimeError unless all three come to the same tokens by the same uniform numbers."""
        mine = self.ours()
        for name, theirs in zip(ALTERNATIVES, (self.one_by_one(same=True), self.left_padded(same=True)), strict=True):
            if mine != theirs:
                raise RuntimeError(f"{name} draws other tokens than ours from the same uniforms: not the same work")


@contextmanager
def elsewseconds_of(samplers: Samplers, settings: Settings) -> Iterator[dict[str, Timed]]:
    """The published stack on the same weights, in a process of its own; nothing where it is not asked for."""
    if settings.against == "nothing":
        yield {}
        return
    case = Case(prompts=settings.prompts, minibatch_size=settings.prompts)
    lengths = samplers.lengths.tolist()
    with tempfile.TemporaryDirectory() as folder:
        reward = GPT2ForSequenceClassification(SHAPE(**SIZES[settings.size], num_labels=2, pad_id=EOS_ID))
        folders = saved(Path(folder), samplers.model, reward)
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
    alternatives = dict(
        zip(ALTERNATIVES, (seconds_of(samplers.one_by_one), seconds_of(samplers.left_padded)), strict=True)
    )
    with elsewseconds_of(samplers, settings) as others:
        kinds = {"ours": seconds_of(samplers.ours), **alternatives, **others, "ours again": seconds_of(samplers.ours)}
        mine, *others_taken = in_turn(list(kinds.values()), lambda taken: len(taken[0]) < settings.repeats)
    tokens = int(samplers.lengths.sum())
    for kind, seconds in zip(list(kinds)[1:], others_taken, strict=True):
        yield name, kind, median_ratio(seconds, mine), tokens / float(np.median(seconds)), len(seconds)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, "benchmarks.sampling_speed", argv)
    out = measurement_folder(settings, "benchmarks.sampling_speed")
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: list[tuple[Value, ...]] = []
    for name in tqdm(settings.lengths, desc="lengths", unit="length", dynamic_ncols=True):
        rows.extend(lines(name, settings))
    table = Table(
        title="sampling",
        columns=("responses", "against ours", "time ratio", "tokens/s", "passes"),
        rows=tuple(rows),
        notes=(
            "Ratio: the alternative's CPU seconds over ours, median of passes taken in turn [95 % bootstrap interval].",
        ),
    )
    publish(table, {}, out, Console())


if __name__ == "__main__":
    main()
