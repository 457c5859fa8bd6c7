"""Prompts from a file, and the checkpoints' responses, sampled once and kept in AlpacaEval's format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from benchmarks.base.json_files import fingerprint, write_json
from benchmarks.data.records import SHOWN, Rejected, read_rows, rejected_lines, unwritable
from benchmarks.judging.judges import excerpt
from benchmarks.judging.settings import PreferenceSettings, Sampling
from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.weights.adapters import adapter_folder
from models.weights.lora_settings import LoraSettings
from models.weights.source import ModelSource
from rlhf_core.names import counted
from rlhf_core.random_streams import uniforms
from rlhf_core.types import Limits


@dataclass(frozen=True, kw_only=True)
class KeptPrompt:
    """One usable row of the prompt file; ``row`` counts from 1."""

    row: int
    instruction: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class KeptPrompts:
    """Rows that are used, and by reason those left out, as "row: what stands there"."""

    kept: tuple[KeptPrompt, ...]
    left_out: Rejected

    def summary(self) -> str:
        """Counts, and the first rows left out for each reason; safe to print."""
        return "\n".join([counted(len(self.kept), "prompt"), *map(excerpt, rejected_lines(self.left_out))])


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder or hub name, and what it is called in tables and as AlpacaEval's ``generator``."""

    source: str
    name: str

    def load(self, sampling: Sampling) -> CausalPolicy:
        """The policy, to sample from; raises ValueError or OSError for what cannot be one."""
        whole = adapter_folder(ModelSource(name_or_path=self.source)) is None
        # a fresh adapter adds exactly nothing, and a whole model is held in few bits only with one
        lora = LoraSettings() if whole and (sampling.four_bit or sampling.dtype != "float32") else None
        return load_policy(self.source, lora=lora, **sampling.held)


def checkpoints(settings: PreferenceSettings) -> list[Checkpoint]:
    """The first and the second."""
    named = ((settings.first, settings.first_name), (settings.second, settings.second_name))
    return [Checkpoint(source=source, name=name) for source, name in named]


@dataclass(frozen=True, kw_only=True)
class Response:
    """Text without outer white space, which depends on the tokenizer; its tokens, EOS counted; and whether it ended
    by itself."""

    output: str
    tokens: int
    finished: bool


def read_prompts(file: Path) -> KeptPrompts:
    """Every usable row of a file that :func:`benchmarks.data.records.read_rows` reads, in order: objects with a text
    ``instruction`` or ``prompt``, no two the same.

    Raises:
        FileNotFoundError, ValueError: no such file, one that holds no rows, or not one usable row.
    """
    kept: dict[str, KeptPrompt] = {}
    left_out: dict[str, list[str]] = {}
    rows = read_rows(file)
    for number, row in enumerate(rows, 1):
        text: Any = row.get("instruction", row.get("prompt")) if isinstance(row, dict) else None
        if fault := _fault(row, text, kept):
            left_out.setdefault(fault, []).append(f"{number}: {str(row).strip()[:80]}")
        else:
            dataset = row["dataset"] if isinstance(row, dict) and isinstance(row.get("dataset"), str) else file.stem
            kept[text.strip()] = KeptPrompt(row=number, instruction=text, dataset=dataset)
    prompts = KeptPrompts(kept=tuple(kept.values()), left_out=left_out)
    if not kept:
        raise ValueError(f"{file}: not one usable row of {len(rows)}\n{prompts.summary()}")
    return prompts


def _fault(row: object, text: object, seen: Mapping[str, KeptPrompt]) -> str:
    """Why a row cannot be used, or nothing."""
    checks = (
        (not isinstance(row, dict), "not a JSON object"),
        (isinstance(row, dict) and not row.keys() & {"instruction", "prompt"}, "no column 'instruction' or 'prompt'"),
        (not isinstance(text, str), "its instruction is not text"),
        (not str(text).strip(), "its instruction is empty"),
        (unwritable(str(text)), "its instruction is broken Unicode"),
        (str(text).strip() in seen, "seen before"),
    )
    return next((reason for holds, reason in checks if holds), "")


def usable_prompts(settings: PreferenceSettings, file: Path) -> KeptPrompts:
    """Rows of the prompt file that both checkpoints can be given. Where an earlier call left ``file``, it says which
    those are."""
    prompts = read_prompts(Path(settings.prompts))
    if settings.overwrite or not file.is_file():
        return fitting(settings.sampling, prompts, checkpoints(settings))
    earlier = json.loads(file.read_text(encoding="utf-8"))
    kept = tuple(prompt for prompt in prompts.kept if prompt.row in set(earlier["kept"]))
    return KeptPrompts(kept=kept, left_out=earlier["left_out"])


def fitting(sampling: Sampling, prompts: KeptPrompts, checkpoints: Sequence[Checkpoint]) -> KeptPrompts:
    """The prompts that leave every checkpoint room for ``max_tokens``.

    Raises:
        ValueError: there are others, unless they are to be dropped; or none is left.
    """
    for checkpoint in checkpoints:
        policy, refused = checkpoint.load(sampling), dict[int, str]()
        for prompt, ids in zip(prompts.kept, _encoded(sampling, policy, prompts.kept), strict=True):
            try:
                policy.validate([ids], sampling.max_tokens)
            except ValueError as error:
                refused[prompt.row] = f"{prompt.row}{str(error).removeprefix('prompts: row 0').partition(' (')[0]}"
        reason = f"over-long for {checkpoint.name}"
        if refused and sampling.over_long == "error":
            rows = "; ".join(list(refused.values())[:SHOWN])
            raise ValueError(
                f"{reason}: {len(refused)} of {counted(len(prompts.kept), 'prompt')}, the first in row {rows}. "
                "Lower --sampling.max_tokens, or pass --sampling.over_long drop"
            )
        kept = tuple(prompt for prompt in prompts.kept if prompt.row not in refused)
        left_out = {**prompts.left_out, **({reason: list(refused.values())} if refused else {})}
        prompts = KeptPrompts(kept=kept, left_out=left_out)
        if not kept:
            raise ValueError(f"no prompt fits\n{prompts.summary()}")
    return prompts


def _encoded(sampling: Sampling, policy: CausalPolicy, prompts: Sequence[KeptPrompt]) -> list[list[int]]:
    return policy.encode([sampling.template.format(instruction=prompt.instruction) for prompt in prompts])


def responses(sampling: Sampling, checkpoint: Checkpoint, prompts: Sequence[KeptPrompt], file: Path) -> list[Response]:
    """A response to each prompt: read from ``file``, or drawn and written there, in AlpacaEval's format.

    What that format has no place for, tokens and ends, stands in ``NAME.tokens.json`` beside it.

    Raises:
        ValueError: what is there does not answer these prompts.
    """
    counts_file = file.with_suffix(".tokens.json")
    if not file.is_file():
        drawn = sampled(sampling, checkpoint, prompts)
        write_json(counts_file, [{"tokens": one.tokens, "finished": one.finished} for one in drawn])
        named = {"generator": checkpoint.name}
        rows = [
            {"instruction": prompt.instruction, "output": one.output, **named, "dataset": prompt.dataset}
            for prompt, one in zip(prompts, drawn, strict=True)
        ]
        write_json(file, rows)  # last: where it is, all is there
    rows, counts = (json.loads(path.read_text(encoding="utf-8")) for path in (file, counts_file))
    if [row["instruction"] for row in rows] != [prompt.instruction for prompt in prompts] or len(counts) != len(rows):
        raise ValueError(
            f"{file} was changed and does not answer the prompts of {file.parent}; delete it to draw again"
        )
    return [Response(output=row["output"], **count) for row, count in zip(rows, counts, strict=True)]


def sampled(sampling: Sampling, checkpoint: Checkpoint, prompts: Sequence[KeptPrompt]) -> list[Response]:
    """Draw a response to each prompt by inverse CDF, the uniforms keyed by the prompt's row in its file."""
    policy, drawn = checkpoint.load(sampling), list[Response]()
    ids = _encoded(sampling, policy, prompts)
    uniform = uniforms(sampling.seed, "evaluation", 0, max(prompt.row for prompt in prompts), sampling.max_tokens)
    for start in trange(0, len(prompts), sampling.batch_size, desc=f"sampling {checkpoint.name}", disable=None):
        some = slice(start, start + sampling.batch_size)
        chosen = uniform[[prompt.row - 1 for prompt in prompts[some]]]
        least, most = (torch.full((len(chosen),), limit) for limit in (sampling.min_tokens, sampling.max_tokens))
        limits = Limits(min_lengths=least, max_lengths=most)
        sequences = policy.sample(ids[some], limits, chosen, temperature=sampling.temperature)
        texts = policy.decode(sequences.responses())
        drawn += [
            Response(output=text.strip(), tokens=int(tokens), finished=bool(finished))
            for text, tokens, finished in zip(texts, sequences.response_lengths, sequences.finished, strict=True)
        ]
    return drawn


def model_fingerprint(source: str) -> str:
    """SHA-256 of the weights, settings and tokenizer in a folder; of the name where it is one on the hub, where a
    change is not seen."""
    endings = ("safetensors", "json", "jinja", "model")
    files = sorted(file for ending in endings for file in Path(source).glob(f"*.{ending}"))
    return fingerprint(files or [source])
