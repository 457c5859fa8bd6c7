"""Passes and PPO steps with and without evidence for credit: the work of ``benchmarks.evidence_cost``.

Operations are counted, memory is the peak of live tensors, and time is CPU seconds of passes taken in turn.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import product

import torch
from tqdm import tqdm

from benchmarks.cost.architectures import random_models
from benchmarks.cost.equal_rows import equal_rows
from benchmarks.cost.memory_settings import MemorySettings
from benchmarks.cost.paired_timing import CPU, Pass, flops, median_ratio, paired_seconds, peak_bytes
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


def models(layers: int, context: int) -> Models:
    """Policy and reward model of the same shape, with random weights."""
    shape = llama_config(vocab_size=VOCAB, hidden_size=256, n_layers=layers, n_heads=8, n_kv_heads=8, context=context)
    shape.intermediate_size = 688
    memory = MemorySettings(dtype="float32", four_bit="none", training="full", gradient_checkpointing=False)
    return random_models(memory, shape, shape, CPU)


def sequences(rows: int, tokens: int) -> Sequences:
    """Random rows without padding, half prompt and half response."""
    ids = torch.randint(EOS_ID + 1, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return equal_rows(ids[:, : tokens // 2], ids[:, tokens // 2 :])


def scoring(method: str, models: Models, rows: int, tokens: int) -> Pass:
    """The reward model's pass, with the evidence that the method needs from it."""
    needs, given = REDISTRIBUTORS[method]().needs, sequences(rows, tokens)
    return lambda: models[1].score(given, needs)


def log_probabilities(method: str, models: Models, rows: int, tokens: int) -> Pass:
    """The policy's pass, with the evidence that the method needs from it."""
    needs, given = REDISTRIBUTORS[method]().needs, sequences(rows, tokens)
    return lambda: models[0].evaluate(given, needs)


def step(method: str, models: Models, rows: int, tokens: int) -> Pass:
    """A PPO step of one epoch and one minibatch, on prompts that are always the same.

    The pass raises RuntimeError if it did other work than it was asked for: responses of another length, or a minibatch
    that was skipped.
    """
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
    """What evidence adds to a pass or a step: operations, memory, time; the time of plain again; number of passes."""
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


def evidence_table(
    methods: Sequence[str],
    *,
    rows: Sequence[int],
    tokens: Sequence[int],
    step_tokens: Sequence[int],
    layers: int,
    seconds: float,
) -> Table:
    """Measure passes of every method, number of rows and number of ``tokens`` per row, then PPO steps of
    ``step_tokens`` per row, on one thread and for so many CPU seconds each.

    Raises:
        RuntimeError: a step did other work than it was asked for.
    """
    torch.set_num_threads(1)
    longest = max((*tokens, *step_tokens))
    shared = models(layers, longest)
    shared[1].micro_batch_tokens = max(rows) * longest
    asked = [*product(methods, rows, tokens, ("pass",)), *product(methods, rows, step_tokens, ("step",))]
    lines: list[tuple[Value, ...]] = []
    for name, n_rows, n_tokens, what in tqdm(asked, desc="evidence", unit="line", dynamic_ncols=True, disable=None):
        kind = "step" if what == "step" else PASSES[name]
        with torch.set_grad_enabled(kind == "step"):
            # each on its own copy of the models: a step changes the weights, and attention evidence leaves a reader
            plain, with_evidence = (WORK[kind](m, deepcopy(shared), n_rows, n_tokens) for m in ("sparse", name))
            lines.append((name, kind, n_rows, n_tokens, *line(plain, with_evidence, seconds)))
    columns = ("evidence", "pass", "rows", "tokens", "FLOPs", "peak bytes", "time", "time, plain again", "passes")
    note = "Time: CPU seconds divided by the plain pass's, median of pairs [95 % bootstrap interval], one thread."
    return Table(title="what evidence costs", columns=columns, rows=tuple(lines), notes=(note,))
