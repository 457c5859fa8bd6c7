"""Memory that runs out: the same work in smaller parts, the same result, said once and kept for the run."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from fakes import ragged_sequences
from often import fast
from torch import nn

from models import load_policy, load_reward_model
from models.rewards.classifier_probe import ALTER
from models.tiny import save_tiny
from redistributors import DecoderAttention, RewardAttention
from rlhf_core import PPOConfig, PPOTrainer
from rlhf_core.batching import TokenBudget, row_batches, run_in_parts
from rlhf_core.probe import Variants
from rlhf_core.types import TENSORS, Rollout

CONFIG = PPOConfig(seed=3, rollout_batch_size=8, minibatch_size=6, epochs=2, min_length=2, max_length=(3, 9))
PROMPTS = ["w2 w3", "w4", "w5 w6 w7", "w8 w9", "w3 w3 w3 w3 w3 w3", "w7", "w9 w2", "w5"]
ROOM = 33  # two of the longest rows
PHASES = ("sampling", "log-probabilities", "reference log-probabilities", "scoring", "update")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    classifier = {"head": "classifier", "num_labels": 2, "seed": 2, "std": 0.1}
    return save_tiny(folder / "policy", seed=1, std=0.1), save_tiny(folder / "reward", **classifier)


@dataclass
class Device:
    """Holds ``room`` tokens in a pass of what it watches, and remembers how many were too many."""

    room: int
    refused: list[int] = field(default_factory=list)

    def hold(self, tokens: int) -> None:
        if tokens > self.room:
            self.refused.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def watch(self, model: nn.Module, when: Callable[[dict], bool]) -> None:
        """Forward passes in which ``when`` holds of the model's arguments."""

        def before(module, args, kwargs):
            if when(kwargs):
                self.hold(kwargs.get("attention_mask", kwargs["input_ids"]).numel())

        model.register_forward_pre_hook(before, with_kwargs=True)

    def watch_backward(self, layer: nn.Module) -> None:
        """Backward passes, once they have come down to ``layer``."""
        layer.register_full_backward_pre_hook(lambda module, gradient: self.hold(gradient[0].shape[:2].numel()))


def limited(trainer: PPOTrainer, phase: str) -> Device:
    """A device too small for whole batches in ``phase``."""
    device, network = Device(ROOM), trainer.policy._network
    if phase == "sampling":
        device.watch(network.lm, lambda inputs: inputs["use_cache"])
    elif phase == "log-probabilities":
        device.watch(network.lm, lambda inputs: not inputs["use_cache"] and not torch.is_grad_enabled())
    elif phase == "reference log-probabilities":
        device.watch(network.reference.lm, lambda inputs: True)
    elif phase == "scoring":
        device.watch(trainer.reward.model.base_model, lambda inputs: True)
    else:
        device.watch_backward(network.lm.transformer.h[0])
    return device


class EveryEvidence:
    """Reads attention of the reward model and asks for the policy's too."""

    needs = RewardAttention().needs | DecoderAttention().needs
    causal, conserving = RewardAttention().causal, RewardAttention().conserving

    def __call__(self, rollout: Rollout) -> torch.Tensor:
        return RewardAttention()(rollout)


def make_trainer(folders) -> tuple[PPOTrainer, list[torch.Tensor]]:
    """A trainer, and where the gradient of every minibatch is put."""
    policy, reward = load_policy(folders[0]), load_reward_model(folders[1], score="logit_difference")
    trainer = PPOTrainer(
        policy, reward, EveryEvidence(), CONFIG, optimizer=lambda weights, config: torch.optim.SGD(weights, lr=1e-3)
    )
    gradients: list[torch.Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([weight.grad.flatten() for weight in policy.parameters()]))
    )
    return trainer, gradients


def step(trainer: PPOTrainer) -> tuple[Rollout, dict[str, float]]:
    rollout = trainer.collect(PROMPTS)
    figures = trainer.update(trainer.estimate_returns(rollout, trainer.redistribute(rollout)))
    trainer.conclude(rollout)
    return rollout, figures


@pytest.fixture(scope="module")
def plain(folders):
    """Two steps with memory enough: what they give, and their gradients."""
    trainer, gradients = make_trainer(folders)
    return [step(trainer) for _ in range(2)], gradients


def assert_same(rollout: Rollout, other: Rollout) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(rollout.sequences, name), getattr(other.sequences, name)), name
    assert len(rollout.evidence) == 2
    pairs = [(rollout.evidence[need], other.evidence[need]) for need in other.evidence]
    pairs += [(getattr(rollout, name), getattr(other, name)) for name in ("logprobs", "ref_logprobs", "values", "kl")]
    for one, two in [*pairs, (rollout.scores, other.scores)]:
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("phase", fast(("update", "scoring"), PHASES))
def test_steps_that_run_out_of_memory_learn_the_same(phase, folders, plain):
    trainer, gradients = make_trainer(folders)
    device = limited(trainer, phase)
    with pytest.warns(RuntimeWarning) as said:
        taken = [step(trainer)]
    repeats = len(device.refused)
    assert repeats == len(said) >= 1
    assert all(str(warning.message).startswith(f"{phase}: out of memory with ") for warning in said)
    taken.append(step(trainer))  # a warning is an error here
    assert len(device.refused) == repeats, "the smaller parts were not kept"
    for (rollout, figures), (expected, expected_figures) in zip(taken, plain[0], strict=True):
        assert_same(rollout, expected)
        assert figures == pytest.approx(expected_figures, rel=1e-6, abs=1e-6)
    assert len(gradients) == 8
    for one, two in zip(gradients, plain[1], strict=True):
        assert two.abs().max() > 0.01
        assert (one - two).abs().max() < 1e-6


@pytest.mark.slow
def test_each_budget_is_halved_where_it_did_not_suffice(folders):
    trainer, _ = make_trainer(folders)
    devices = {phase: limited(trainer, phase) for phase in ("sampling", "update", "scoring")}
    with pytest.warns(RuntimeWarning) as said:
        step(trainer)
    texts = [str(warning.message) for warning in said]
    for phase, setting, now, before in (
        ("sampling", "PPOConfig.sampling_tokens", trainer.budgets.sampling.tokens, 16_384),
        ("update", "PPOConfig.micro_batch_tokens", trainer.budgets.micro_batch.tokens, 4096),
        ("scoring", "the reward model's micro_batch_tokens", trainer.reward.micro_batch_tokens, 4096),
    ):
        of_phase = [text for text in texts if text.startswith(phase)]
        assert f"(so far {before})" in of_phase[0]
        assert of_phase[-1].endswith(f"set {setting} to {now} next time")
        assert 8 < now <= ROOM
        assert len(devices[phase].refused) == len(of_phase) <= 2
    assert trainer.config == CONFIG


@pytest.mark.slow
@pytest.mark.parametrize("absent", ["delete", "replace"])
def test_altered_responses_are_made_in_the_parts_they_are_scored_in(absent, folders, monkeypatch):
    reward, sequences = load_reward_model(folders[1], score="logit_difference"), ragged_sequences()
    keep = torch.rand(4, 10, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    variants = Variants(keep=keep, absent=absent)
    plain, device, alter = reward.probe(sequences).scores(variants), Device(ROOM), ALTER[absent]

    def altered(probe, inputs, row, keep):
        device.hold(keep.numel())
        return alter(probe, inputs, row, keep)

    monkeypatch.setitem(ALTER, absent, altered)
    with pytest.warns(RuntimeWarning, match="scoring variants: out of memory with .* set the reward model's micro_"):
        found = reward.probe(sequences).scores(variants)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    assert device.refused


def ask_for_gradients(probe):
    return probe.embedding_gradients(0.5, "zero").contributions


def ask_for_maps(probe):
    return probe.attention(lambda maps: maps.weights[0].sum((1, 2)).gather(1, maps.layout.response_positions))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (ask_for_gradients, "embedding gradients: .* micro_batch_tokens, from which its gradient passes start, to "),
        (ask_for_maps, "attention maps: .* micro_batch_tokens, from which its passes with attention maps start, to "),
    ],
)
def test_scoring_goes_on_as_it_was_where_other_passes_ran_out_of_memory(ask, words, folders):
    reward, sequences = load_reward_model(folders[1], score="logit_difference"), ragged_sequences()
    plain, others = ask(reward.probe(sequences)), {ask_for_gradients, ask_for_maps} - {ask}
    device = Device(ROOM // 2)
    reward.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: device.hold(kwargs["attention_mask"].numel()), with_kwargs=True
    )
    with pytest.warns(RuntimeWarning, match=words):
        found = ask(reward.probe(sequences))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    ask(reward.probe(sequences))  # a warning is an error here
    assert reward.micro_batch_tokens == 4096
    for other in others:
        with pytest.warns(RuntimeWarning, match=r"\(so far 4096\)"):
            other(reward.probe(sequences))
    reward.micro_batch_tokens = 64
    assert {budget.tokens for budget in vars(reward._budgets).values()} == {64}


ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("std::bad_alloc"),
)


def in_parts(lengths, tokens, run, phase="work"):
    lengths, budget = torch.tensor(lengths), TokenBudget(setting="the setting", tokens=tokens)
    return budget, lambda: run_in_parts(run, lambda most: row_batches(lengths, most), lengths, budget, phase=phase)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_every_way_of_running_out_of_memory_is_known(error):
    def run(rows):
        if len(rows) > 1:
            raise error
        return rows.tolist()

    budget, work = in_parts([3, 5], 1000, run)
    with pytest.warns(RuntimeWarning, match=r"with 2 rows of up to 5 tokens .* at most 5 tokens .*\(so far 1000\)"):
        assert work() == [[1], [0]]
    assert budget.tokens == 5


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")], ids=str
)
def test_other_errors_pass_through_and_change_nothing(error):
    def run(rows):
        raise error

    budget, work = in_parts([3, 5], 1000, run)
    with pytest.raises(type(error)) as raised:
        work()
    assert raised.value is error
    assert error.__cause__ is None
    assert budget.tokens == 1000


def test_a_single_row_that_is_too_long_says_what_to_lower():
    original = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def run(rows):
        raise original

    budget, work = in_parts([512], 4096, run, phase="update")
    with pytest.raises(MemoryError, match=r"update: .* single row of 512 tokens.*max_length.*four_bit.*lora") as raised:
        work()
    assert raised.value.__cause__ is original
    assert budget.tokens == 4096


def test_what_a_failed_pass_held_is_free_before_the_next():
    held = []

    class Tensors:
        """Stands for what a pass makes; in a cycle, as tensors with hooks are."""

        def __init__(self):
            self.cycle = self
            held.append(weakref.ref(self))

    def run(rows):
        assert all(tensors() is None for tensors in held[:-1]) or len(rows) == 1
        made = Tensors()
        if len(rows) > 1:
            raise torch.OutOfMemoryError(f"no room for {made}")
        assert held[0]() is None

    _, work = in_parts([4, 4], 8, run)
    with pytest.warns(RuntimeWarning):
        work()
    assert len(held) == 3


REAL = """
import resource, sys, torch, warnings
from pathlib import Path
from models import load_policy, load_reward_model
from redistributors import Uniform
from rlhf_core import PPOConfig, PPOTrainer

torch.set_num_threads(1)
ROWS, ROW = 128, 14

def trainer(tokens):
    policy, reward = load_policy(sys.argv[1]), load_reward_model(sys.argv[2], score="single_logit")
    config = PPOConfig(rollout_batch_size=ROWS, minibatch_size=ROWS, epochs=1, min_length=10, max_length=(10, 10),
                       micro_batch_tokens=tokens, sampling_tokens=tokens)
    return PPOTrainer(policy, reward, Uniform(), config, optimizer=lambda w, config: torch.optim.SGD(w, lr=1e-2))

def step(trainer):
    rollout = trainer.collect([[5, 6, 7, 8]] * ROWS)
    trainer.update(trainer.estimate_returns(rollout, trainer.redistribute(rollout)))
    return rollout.sequences.response_ids, torch.cat([w.detach().flatten() for w in trainer.policy.parameters()])

plain, cramped = trainer(2 * ROW), trainer(ROWS * ROW)
tokens, weights = step(plain)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 96 * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    tokens_again, weights_again = step(cramped)
for warning in said:
    print(warning.message)
assert torch.equal(tokens, tokens_again)
assert (weights - weights_again).abs().max() < 1e-6, (weights - weights_again).abs().max()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_a_process_whose_memory_really_runs_out_learns_the_same(tmp_path):
    policy = save_tiny(tmp_path / "policy", vocab_size=40_000, hidden_size=8)
    reward = save_tiny(tmp_path / "reward", vocab_size=40_000, hidden_size=8, head="classifier")
    ran = subprocess.run(
        [sys.executable, "-c", REAL, policy, reward],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "sampling: out of memory with 128 rows of up to 14 tokens" in ran.stdout
    assert "log-probabilities: out of memory with 128 rows of up to 14 tokens" in ran.stdout
