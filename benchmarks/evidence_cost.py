"""What does evidence cost? The pass that is made anyway, and the whole PPO step, with and without it.

A Llama-like model of about 10M parameters and 12 layers scores rows (abc, prefix-difference), or gives their
log-probabilities (abc-d, abc-d2); then it takes PPO steps of one epoch, of which evidence is a larger share than of
more. Operations are counted, memory is the peak of live tensors, time is CPU seconds of passes taken in turn: plain,
plain again, with evidence. The bars: 1 % more operations, 5 % more memory, an interval that reaches down to 1.03.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.base.command_line import parse
from benchmarks.base.run_folder import measurement_folder
from benchmarks.base.settings_checks import require_at_least, require_known
from benchmarks.cost.architectures import random_models
from benchmarks.cost.equal_rows import equal_rows
from benchmarks.cost.memory_prediction import MemorySettings
from benchmarks.cost.paired_timing import CPU, Pass, flops, median_ratio, paired_seconds, peak_bytes
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value
from models.policy.causal_policy import CausalPolicy
from models.rewards.classifier_reward import ClassifierReward
from models.tiny import EOS_ID, llama_config
from redistributors import REDISTRIBUTORS
from rlhf_core.config import PPOConfig
from rlhf_core.trainer import PPOTrainer
from rlhf_core.types import Sequences

PASSES = {"abc": "scoring", "prefix-difference": "scoring", "abc-d": "log-probabilities", "abc-d2": "log-probabilities"}
VOCAB = 2048
Models = tuple[CausalPolicy, ClassifierReward]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which passes."""

    tokens: tuple[int, ...] = (128, 512, 1024, 4096)
    """Tokens of a row, half of them response."""
    rows: tuple[int, ...] = (1, 2)
    """Rows of a pass."""
    redistributors: tuple[str, ...] = tuple(PASSES)
    """Whose evidence: abc, prefix-difference, abc-d, abc-d2."""
    step_tokens: tuple[int, ...] = (128, 512)
    """Tokens of a row in PPO steps, half of them response; an empty list leaves the steps out."""
    layers: int = 12
    """Layers of the model."""
    seconds: float = 20.0
    """CPU seconds to spend on a line of the table; never fewer than 5 passes of each kind, nor more than 60."""
    out: str = "evidence_cost"
    """Folder for the table."""
    overwrite: bool = False
    """Delete an earlier measurement in ``out``."""

    def __post_init__(self) -> None:
        require_known(self, redistributors=PASSES)
        require_at_least(self, tokens=2, step_tokens=2, rows=1, layers=1)

    @property
    def longest(self) -> int:
        """Most tokens of a row."""
        return max((*self.tokens, *self.step_tokens))


def models(settings: Settings) -> Models:
    """Policy and reward model of the same shape, random weights."""
    shape = llama_config(
        vocab_size=VOCAB, hidden_size=256, n_layers=settings.layers, n_heads=8, n_kv_heads=8, context=settings.longest
    )
    shape.intermediate_size = 688
    memory = MemorySettings(dtype="float32", four_bit="none", training="full", gradient_checkpointing=False)
    return random_models(memory, shape, shape, CPU)


def sequences(rows: int, tokens: int) -> Sequences:
    """Random rows without padding, half prompt and half response."""
    ids = torch.randint(EOS_ID + 1, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return equal_rows(ids[:, : tokens // 2], ids[:, tokens // 2 :])


def scoring(method: str, models: Models, rows: int, tokens: int) -> Pass:
    """The reward model's pass, with what evidence the method needs of it."""
    needs, given = REDISTRIBUTORS[method]().needs, sequences(rows, tokens)
    return lambda: models[1].score(given, needs)


def log_probabilities(method: str, models: Models, rows: int, tokens: int) -> Pass:
    """The policy's pass, with what evidence the method needs of it."""
    needs, given = REDISTRIBUTORS[method]().needs, sequences(rows, tokens)
    return lambda: models[0].evaluate(given, needs)


def step(method: str, models: Models, rows: int, tokens: int) -> Pass:
    """One epoch on one minibatch of prompts that are always the same.

    The pass raises RuntimeError where it did other work than asked for: responses of another length, a minibatch that
    was skipped."""
    length = tokens - tokens // 2
    config = PPOConfig.from_paper(
        "positive_generation",
        rollout_batch_size=rows,
        minibatch_size=rows,
        epochs=1,
        min_length=length,
        max_length=(length, length),
    )
    trainer = PPOTrainer(*models, REDISTRIBUTORS[method](), config)
    prompts = sequences(rows, tokens).prompt_ids.tolist()

    def take() -> None:
        figures = trainer.step(prompts)
        done = figures["length"], figures["skipped_minibatches"], figures["refused_minibatches"]
        if done != (length, 0, 0):
            raise RuntimeError(f"{method}: (length, skipped, refused) of a step were {done}, not {(length, 0, 0)}")

    return take


WORK = {"scoring": scoring, "log-probabilities": log_probabilities, "step": step}


def percent(more: float, less: float) -> str:
    """How much larger, in per cent."""
    return f"{100 * (more / less - 1):+.2f} %"


def line(plain: Pass, with_evidence: Pass, budget: float) -> tuple[Value, ...]:
    """What evidence adds to a pass or a step."""
    plain()
    with_evidence()
    first, second, evidence = paired_seconds((plain, plain, with_evidence), budget)
    return (
        percent(flops(with_evidence), flops(plain)),
        percent(peak_bytes(with_evidence), peak_bytes(plain)),
        median_ratio(evidence, first),
        median_ratio(second, first),
        len(first),
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, "benchmarks.evidence_cost", argv)
    out = measurement_folder(settings, "benchmarks.evidence_cost")
    torch.set_num_threads(1)
    shared = models(settings)
    shared[1].micro_batch_tokens = max(settings.rows) * settings.longest
    asked = [
        *product(settings.redistributors, settings.rows, settings.tokens, ("pass",)),
        *product(settings.redistributors, settings.rows, settings.step_tokens, ("step",)),
    ]
    lines: list[tuple[Value, ...]] = []
    for name, rows, tokens, what in tqdm(asked, desc="evidence", unit="line", dynamic_ncols=True):
        kind = "step" if what == "step" else PASSES[name]
        with torch.set_grad_enabled(kind == "step"):
            # each on its own copy of the models: a step changes the weights, and attention evidence leaves a reader
            plain, with_evidence = (WORK[kind](method, deepcopy(shared), rows, tokens) for method in ("sparse", name))
            lines.append((name, kind, rows, tokens, *line(plain, with_evidence, settings.seconds)))
    columns = ("evidence", "pass", "rows", "tokens", "FLOPs", "peak bytes", "time", "time, plain again", "passes")
    note = "Time: median of paired ratios to the plain pass [95 % bootstrap interval], CPU seconds, one thread."
    table = Table(title="what evidence costs", columns=columns, rows=tuple(lines), notes=(note,))
    publish(table, {}, out, Console())


if __name__ == "__main__":
    main()
