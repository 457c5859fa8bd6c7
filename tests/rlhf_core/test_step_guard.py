"""Whatever number enters a step, from wherever: it can be computed with, or nothing is learned from it."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from fakes import TablePolicy, small_run, unchecked

from redistributors import Sparse
from rlhf_core import JSONLines, PPOConfig, PPOTrainer, TokenReward
from rlhf_core.config import KLConfig, ScoreConfig
from rlhf_core.plain_numbers import OF_THE_ENGINE
from rlhf_core.step_guard import UnusableRollout

PROMPTS = [[1], [2], [3], [1, 2]]


def lengths(prompts, responses):
    return [float(len(response)) for response in responses]


@dataclass
class Wild:
    """Sparse credit that is spoilt, and a count of observations that becomes NaN, when told so."""

    fault: object = None
    poisoned: bool = False
    seen: float = 0.0
    needs: frozenset = field(default_factory=frozenset)
    causal: bool = True
    conserving: bool = True

    def __call__(self, rollout):
        credit = Sparse()(rollout)
        return credit if self.fault is None else torch.where(credit != 0, self.fault(credit), 0)

    def observe(self, rollout):
        self.seen += float("nan") if self.poisoned else 1.0

    def state(self):
        return {"seen": torch.tensor(self.seen)}

    def load_state(self, state):
        self.seen = float(state["seen"])


def learned(trainer):
    """Everything a step may change."""
    state = trainer.state()
    numbers = {name: value for name, value in state.numbers.items() if name not in ("guard", "steps_done")}
    weights = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    return json.dumps(numbers, default=str), [*state.tensors.values(), *weights]


@pytest.mark.parametrize("score", [1e13, -1e20, 3e38])
@pytest.mark.parametrize("scaling", ["none", "running_std"])
def test_nothing_is_learned_from_a_score_that_is_finite_and_huge(score, scaling):
    wild = []
    reward = TokenReward(lambda prompts, responses: [*wild, *lengths(prompts, responses)[len(wild) :]])
    trainer = PPOTrainer(TablePolicy(), reward, Wild(), replace(small_run(), score=ScoreConfig(scaling=scaling)))
    trainer.step(PROMPTS)
    numbers, tensors = learned(trainer)
    wild.append(score)
    with pytest.raises(UnusableRollout, match=r"raw_scores: 1 of 4 rows exceed 1e\+12 in size; row 0"):
        trainer.step(PROMPTS)
    again, after = learned(trainer)
    assert again == numbers
    assert all(map(torch.equal, tensors, after))
    wild.clear()
    trainer.step(PROMPTS)
    assert trainer.score_moments.std < 10


@pytest.mark.parametrize("fault", [lambda x: x / 0, lambda x: x * float("nan"), lambda x: x * 1e20, lambda x: x * 1.01])
def test_credit_that_goes_wrong_later_skips_its_step_and_the_run_goes_on(fault, tmp_path):
    method = Wild()

    def score(prompts, responses):
        method.fault = fault if trainer.steps_done == 2 and trainer.trained else None
        return lengths(prompts, responses)

    trainer = PPOTrainer(TablePolicy(), TokenReward(score), method, small_run())
    trainer.fit(PROMPTS, 5, out=tmp_path / "run", eval_every=100)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped_rollout", 0) for row in rows] == [0, 0, 1, 0, 0]
    (record,) = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert (record["step"], record["what"]) == (3, "rollout")
    assert "Wild(" in record["reason"]


def test_a_method_does_not_keep_what_it_learned_wrong():
    trainer = PPOTrainer(TablePolicy(), TokenReward(lengths), Wild(), small_run())
    trainer.step(PROMPTS)
    trainer.redistributor.poisoned = True
    assert trainer.step(PROMPTS)["skipped_observation"] == 1
    assert trainer.redistributor.seen == 1
    assert trainer.guard.skipped[0]["what"] == "observation"


def with_figure(value, name="mine"):
    instruments = [lambda rollout: {name: value}]
    return PPOTrainer(TablePolicy(), TokenReward(lengths), Sparse(), small_run(), instruments=instruments)


@pytest.mark.parametrize(
    "value",
    [np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16), Decimal("0.5"),
     Fraction(1, 2), torch.nn.Parameter(torch.tensor(0.5))],
)  # fmt: skip
def test_any_real_number_becomes_a_plain_float(value):
    found = with_figure(value).step(PROMPTS)["mine"]
    assert (found, type(found)) == (0.5, float)


@pytest.mark.parametrize("value", ["0.5", None, 1j, np.complex64(1), [1.0], np.ones(2), torch.ones(1), {}, 10**400])
def test_what_is_no_number_is_refused_by_name_before_anything_is_learned(value):
    trainer = with_figure(value)
    before = trainer.policy.logits.detach().clone()
    with pytest.raises(ValueError, match=r"<lambda>.* returned for 'mine' "):
        trainer.step(PROMPTS)
    assert torch.equal(before, trainer.policy.logits)
    assert not trainer.optimizer.state


@pytest.mark.parametrize("name", ["score", "step", "value_loss", "eval_kl"])
def test_a_figure_does_not_replace_one_of_the_engine(name):
    with pytest.raises(ValueError, match=f"a figure '{name}', but there is one of that name"):
        with_figure(1.0, name).step(PROMPTS)


def test_every_figure_of_a_step_has_its_name_reserved():
    assert with_figure(1.0).step(PROMPTS).keys() - OF_THE_ENGINE == {"mine"}


def test_settings_may_be_numbers_of_numpy_and_torch():
    kl = unchecked(KLConfig, target=np.float32(2))
    config = unchecked(PPOConfig, seed=np.int64(3), max_length=(np.int64(8), torch.tensor(9)), kl=kl)
    assert (type(config.seed), config.max_length, type(config.kl.target)) == (int, (8, 9), float)


def test_memory_that_runs_out_in_the_first_optimizer_step_leaves_it_to_be_taken_again(monkeypatch):
    trainer, plain = (PPOTrainer(TablePolicy(), TokenReward(lengths), Sparse(), small_run()) for _ in range(2))
    real, calls = torch.zeros_like, []

    def zeros_like(*args, **kwargs):
        calls.append("adam" in sys._getframe(1).f_code.co_filename)
        if sum(calls) == 3 and calls[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    with pytest.raises(MemoryError, match=r"optimizer step: .* as before it.*paged_adamw_8bit"):
        trainer.step(PROMPTS)
    assert not trainer.optimizer.state
    trainer.step(PROMPTS)
    plain.step(PROMPTS)
    assert torch.equal(trainer.policy.logits, plain.policy.logits)


PIPED = """
import sys, warnings
from fakes import *
from redistributors import Sparse
from rlhf_core import PPOTrainer, TokenReward
def score(prompts, responses):
    print("scoring", flush=True)
    return [0.0] * len(responses)
print("first", flush=True)
sys.stdin.readline()
PPOTrainer(TablePolicy(), TokenReward(score), Sparse(), small_run()).fit([[1], [2]], 3, out=sys.argv[1])
"""


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_output(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PIPED, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(60) == 0
    assert (tmp_path / "run/checkpoint-3").is_dir()


def test_a_record_that_finds_no_room_says_which_file_and_leaves_no_half_line(tmp_path):
    lines = JSONLines(tmp_path / "metrics.jsonl")
    lines.log(1, {"score": 0.5})

    class Full:
        """Takes ten bytes of the disk's last, and then no more."""

        def __init__(self, file):
            self.file, self.left = file, 10
            self.fileno, self.truncate, self.close = file.fileno, file.truncate, file.close

        def write(self, text):
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken, self.left = self.left, 0
            return self.file.write(text[:taken])

    lines._file = Full(lines._file)
    with pytest.raises(
        OSError, match=r"metrics\.jsonl cannot be written: No space left.*MiB are free.*resume=True"
    ) as e:
        lines.log(2, {"score": 1.5})
    lines.close()
    assert e.value.errno == errno.ENOSPC
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "score": 0.5}\n'
