"""A run that is cut short and taken up again is the run that was never cut short."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fakes import TablePolicy
from often import fast
from resumable import CONFIG, PROMPTS, fit, left_behind, share_of_threes, trainer
from table_trainer import Learner

from redistributors import Sparse, Uniform
from rlhf_core import PPOTrainer, TokenReward
from rlhf_core.optimizer import restore_state, state_numbers, state_tensors
from rlhf_core.run import manifest
from rlhf_core.run.checkpoint import TrainerState, checkpoints, load_state, newest_complete, prune, save_checkpoint
from rlhf_core.run.run_folder import RunFolder
from rlhf_core.run.stopping import stop_requests
from rlhf_core.step_guard import Diverged

ROOT = Path(__file__).parents[3]
HELPERS = ROOT / "tests" / "helpers"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "HF_HUB_OFFLINE": "1",
}
KIND_OF = {"uniform": "llama-lora", "abc": "llama-lora", "abc-d2": "llama-lora", "log-ratio": "llama-lora"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(HELPERS / "resumable.py"), *map(str, arguments)]


def in_a_new_process(*arguments: object) -> str:
    done = subprocess.run(
        command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(one, other, step: int) -> None:
    (tensors, state, records), (tensors2, state2, records2) = left_behind(one, step), left_behind(other, step)
    assert tensors.keys() == tensors2.keys()
    assert all(torch.equal(tensors[name], tensors2[name]) for name in tensors)
    assert state == state2
    assert records == records2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "k"),
    [
        *((method, k) for method in ("abc", "sparse") for k in (1, 3, 5)),
        # the paper's others, and one that learns; the rest are functions of a rollout like these
        *((method, 3) for method in ("uniform", "abc-d", "abc-d2", "potential-projection")),
    ],
)
def test_six_steps_are_k_and_the_rest_in_a_new_process(method, k, tmp_path):
    require_six_are_k_and_the_rest(KIND_OF.get(method, "gpt2"), method, k, tmp_path)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_on_a_card_too_under_deterministic_algorithms(tmp_path):
    require_six_are_k_and_the_rest("cuda", "abc", 3, tmp_path)


def require_six_are_k_and_the_rest(kind: str, method: str, k: int, tmp_path: Path) -> None:
    whole, parts = tmp_path / "run", tmp_path / "again" / "run"
    parts.parent.mkdir()
    in_a_new_process(whole, kind, method, 6, 0, "new")
    for name in ("policy", "reward", "dpo"):
        shutil.copytree(tmp_path / f"run-{name}", tmp_path / "again" / f"run-{name}")
    in_a_new_process(parts, kind, method, k, 0, "new")
    in_a_new_process(parts, kind, method, 6, 0, "resume")
    tensors, _, _ = left_behind(whole, 6)
    tensors2, _, _ = left_behind(parts, 6)
    assert tensors.keys() == tensors2.keys()
    assert len(tensors) > 10
    for name, tensor in tensors.items():
        assert torch.equal(tensor, tensors2[name]), name
    assert_same(whole, parts, 6)
    earlier, _, _ = left_behind(parts, k)
    assert not all(torch.equal(tensor, tensors[name]) for name, tensor in earlier.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on a table that was never cut short, by method and steps; made once, and only read."""
    root = tmp_path_factory.mktemp("whole")

    @cache
    def made(method: str, steps: int) -> Path:
        fit(root / f"{method}-{steps}", "table", method, steps, 2, resume=False)
        return root / f"{method}-{steps}"

    return made


@pytest.mark.parametrize(
    ("method", "k"),
    [
        ("uniform", 4),
        *(pytest.param("sparse", k, marks=pytest.mark.slow) for k in (1, 4, 8)),
        *(pytest.param("uniform", k, marks=pytest.mark.slow) for k in (1, 8)),
        *(pytest.param("monte-carlo", k, marks=pytest.mark.slow) for k in (1, 4, 8)),
    ],
)
def test_nine_steps_are_k_and_the_rest(method, k, whole, tmp_path):
    fit(tmp_path / "parts", "table", method, k, 2, resume=False)
    fit(tmp_path / "parts", "table", method, 9, 2, resume=True)
    assert_same(whole(method, 9), tmp_path / "parts", 9)
    fit(tmp_path / "parts", "table", method, 9, 2, resume=True)  # nothing is left to do
    assert_same(whole(method, 9), tmp_path / "parts", 9)


def test_what_a_redistributor_has_learned_is_restored(tmp_path):
    def learner():
        return PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Learner(), CONFIG)

    learner().fit(PROMPTS, 2, out=tmp_path / "run")
    learner().fit(PROMPTS, 4, out=tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["seen"] for line in lines] == [0, 8, 16, 24]


def test_without_a_run_to_take_up_one_is_begun_and_without_being_asked_none_is_taken_up(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=True)
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    with pytest.raises(FileExistsError, match=r"is not empty; .* nothing is overwritten \(resume=True goes on with"):
        fit(tmp_path / "run", "table", "uniform", 3, 0, resume=False)
    (tmp_path / "early").mkdir()
    (tmp_path / "early/.settings.json.unfinished").write_text("{")  # a run that died as it began
    fit(tmp_path / "early", "table", "uniform", 2, 0, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty; give a new one, nothing is overwritten$"):
        fit(tmp_path / "mine", "table", "uniform", 3, 0, resume=True)


def test_a_run_with_other_settings_is_refused_with_every_difference(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    other = replace(CONFIG, lam=0.9, kl=replace(CONFIG.kl, target=2.0), micro_batch_tokens=64)
    changed = PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Sparse(), other)
    words = (
        r"run with other settings: config.kl.target was 6.0 and is 2.0; config.lam was 0.95 and is 0.9; "
        r"prompts was '5 prompts, .*' and is '4 prompts, .*'; redistributor was 'Uniform\(beta=1.0\)' and is 'Sparse"
    )
    with pytest.raises(ValueError, match=words):
        changed.fit(PROMPTS[:4], 4, out=tmp_path / "run", resume=True)
    smaller = PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Uniform(), replace(CONFIG, micro_batch_tokens=64))
    smaller.fit(PROMPTS, 3, out=tmp_path / "run", eval_every=1, resume=True)
    assert smaller.steps_done == 3


def test_a_run_on_another_model_is_refused(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    other = PPOTrainer(TablePolicy(seed=1), TokenReward(share_of_threes), Uniform(), CONFIG)
    with pytest.raises(ValueError, match=r"reference of the first prompts were \[-.*\] and are \[-.*\]"):
        other.fit(PROMPTS, 4, out=tmp_path / "run", eval_every=3, resume=True)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def rename_in_manifest(name: str):
    def change(file: Path) -> None:
        found = json.loads((file.parent / "manifest.json").read_text())
        found["files"][name] = found["files"].pop(file.name)
        (file.parent / "manifest.json").write_text(json.dumps(found))

    return change


def link_out(file: Path) -> None:
    shutil.move(file, file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def empty(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()


BROKEN = {
    "truncated": (truncate, r"trainer.safetensors has \d+ bytes instead of \d+"),
    "bit": (flip, r"trainer.safetensors has changed since it was written"),
    "missing": (Path.unlink, "trainer.safetensors is missing"),
    "empty": (empty, "it has no manifest.json, so it was never finished"),
    "unsealed": (lambda file: (file.parent / "manifest.json").unlink(), "it has no manifest.json"),
    "garbled": (lambda file: truncate(file.parent / "manifest.json"), "its manifest.json cannot be read"),
    "up": (rename_in_manifest("../trainer.safetensors"), "names '../trainer.safetensors', which lies outside"),
    "absolute": (rename_in_manifest("/etc/hostname"), "names '/etc/hostname', which lies outside"),
    "link": (link_out, "trainer.safetensors is a link"),
    "more": (lambda file: (file.parent / "pytorch_model.bin").touch(), "pytorch_model.bin is not in its manifest"),
    "future": (
        lambda file: (file.parent / "manifest.json").write_text('{"format": 99}'),
        "has format 99, and this version reads 1",
    ),
}


@pytest.mark.parametrize("fault", fast(("bit", "up", "link"), BROKEN))
def test_a_broken_checkpoint_is_passed_over_set_aside_and_the_run_ends_alike(fault, whole, tmp_path):
    breaks, words = BROKEN[fault]
    shutil.copytree(whole("uniform", 4), tmp_path / "run")
    breaks(tmp_path / "run/checkpoint-4/trainer.safetensors")
    with pytest.raises(ValueError, match=rf"checkpoint-4 cannot be used: .*{words}"):
        trainer("table", "uniform", tmp_path).restore(tmp_path / "run/checkpoint-4")
    with pytest.warns(RuntimeWarning, match=rf"going on from checkpoint-2; .*checkpoint-4: .*{words}"):
        fit(tmp_path / "run", "table", "uniform", 6, 2, resume=True)
    assert_same(whole("uniform", 6), tmp_path / "run", 6)
    assert (tmp_path / "run/checkpoint-4.broken").is_dir()


def test_leftovers_of_a_killed_save_and_broken_lines_are_no_hindrance(whole, tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 2, resume=False)
    (tmp_path / "run/.checkpoint-4.unfinished/policy").mkdir(parents=True)
    (tmp_path / "run/.checkpoint-4.unfinished/policy/half.safetensors").write_bytes(b"half")
    (tmp_path / "run/.checkpoint-1.unfinished").mkdir()
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "score": 1.0}\n{"step": 4, "sco')
    fit(tmp_path / "run", "table", "uniform", 4, 2, resume=True)
    assert_same(whole("uniform", 4), tmp_path / "run", 4)
    assert not list((tmp_path / "run").glob(".checkpoint-*"))
    (tmp_path / "run/metrics.jsonl").write_text("no record\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1 is not a record of a run: b'no record'"):
        fit(tmp_path / "run", "table", "uniform", 5, 2, resume=True)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path):
    fit(tmp_path / "whole", "table", "uniform", 3, 0, resume=False)
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    shutil.rmtree(tmp_path / "run/checkpoint-2")
    fit(tmp_path / "run", "table", "uniform", 3, 0, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run", 3)
    shutil.rmtree(tmp_path / "run/checkpoint-3")
    tired = trainer("table", "uniform", tmp_path)
    tired.step(PROMPTS)
    with pytest.raises(ValueError, match="its run began at step 0, but this trainer is at step 1, or in"):
        tired.fit(PROMPTS, 5, out=tmp_path / "run", eval_every=3, resume=True)


def test_the_newest_checkpoints_are_kept_and_only_once_the_newest_verifies(tmp_path):
    learner = trainer("table", "uniform", tmp_path)
    learner.fit(PROMPTS, 5, out=tmp_path / "run", save_every=1, keep=2)
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["checkpoint-5", "checkpoint-4"]
    with pytest.raises(ValueError, match="keep must be a whole number, 1 or more, got 0"):
        learner.fit(PROMPTS, 1, out=tmp_path / "more", keep=0)


def test_old_checkpoints_stay_where_the_newest_is_broken(tmp_path):
    trainer("table", "uniform", tmp_path).fit(PROMPTS, 3, out=tmp_path / "run", save_every=1)
    flip(tmp_path / "run/checkpoint-3/trainer.safetensors")
    prune(tmp_path / "run", 1)
    assert len(checkpoints(tmp_path / "run")) == 3


def test_a_run_whose_only_checkpoint_was_touched_is_refused_and_keeps_its_records(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 3, 0, resume=False)
    (tmp_path / "run/checkpoint-3/.DS_Store").touch()
    before = (tmp_path / "run/metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"no checkpoint can be used \(checkpoint-3: .DS_Store is not in its manifest"):
        fit(tmp_path / "run", "table", "uniform", 5, 0, resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    (tmp_path / "run/checkpoint-3/.DS_Store").unlink()
    fit(tmp_path / "run", "table", "uniform", 5, 0, resume=True)
    with pytest.raises(ValueError, match=r"is at step 5 already, and steps 4 asks for 4 in all"):
        fit(tmp_path / "run", "table", "uniform", 4, 0, resume=True)


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    with (
        RunFolder(tmp_path / "run").claimed(),
        pytest.raises(FileExistsError, match="another process works in .*run; wait for its end"),
    ):
        fit(tmp_path / "run", "table", "uniform", 3, 0, resume=True)
    fit(tmp_path / "run", "table", "uniform", 3, 0, resume=True)


class Plain:
    """A redistributor without a representation of its own: Python's shows where in memory it is."""

    needs: frozenset = frozenset()
    causal = conserving = False

    def __call__(self, rollout):
        return Uniform()(rollout)


def test_a_redistributor_without_a_representation_is_known_again(tmp_path):
    for steps in (2, 3):
        learner = PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Plain(), CONFIG)
        learner.fit(PROMPTS, steps, out=tmp_path / "run", resume=True)
    assert learner.steps_done == 3


def test_another_optimizer_is_refused(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    other = PPOTrainer(
        TablePolicy(),
        TokenReward(share_of_threes),
        Uniform(),
        CONFIG,
        optimizer=lambda parameters, config: torch.optim.SGD(parameters, lr=0.1),
    )
    with pytest.raises(ValueError, match=r"optimizer was 'AdamW\(lr=0.01, .*' and is 'SGD\(lr=0.1, "):
        other.fit(PROMPTS, 3, out=tmp_path / "run", eval_every=3, resume=True)


def test_a_checkpoint_of_another_config_is_not_restored(tmp_path):
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    other = PPOTrainer(TablePolicy(), TokenReward(share_of_threes), Uniform(), replace(CONFIG, learning_rate=1e-5))
    with pytest.raises(ValueError, match=r"with other settings: config.learning_rate was 0.01 and is 1e-05$"):
        other.restore(tmp_path / "run/checkpoint-2")  # the optimizer that follows from it is not named besides
    said = r"config.learning_rate was 0.01 and is 1e-05. Go on with those of the run, or train into another folder$"
    with pytest.raises(ValueError, match=said):
        other.fit(PROMPTS, 3, out=tmp_path / "run", eval_every=1, resume=True)


def test_a_trainer_that_broke_off_in_its_first_step_does_not_begin_again_with_moved_weights(tmp_path):
    learner = trainer("table", "uniform", tmp_path)
    step, learner.optimizer.step = learner.optimizer.step, lambda: (step(), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learner.fit(PROMPTS, 2, out=tmp_path / "run", eval_every=3)
    learner.optimizer.step = step
    with pytest.raises(
        ValueError, match="this trainer is at step 0, or in the middle of one; give a trainer at step 0"
    ):
        learner.fit(PROMPTS, 2, out=tmp_path / "run", eval_every=3, resume=True)


def test_no_checkpoint_is_written_or_pruned_between_steps_that_had_to_be_skipped(tmp_path):
    policy = TablePolicy()

    def spoilt(prompts, responses):
        if len(seen) > 3:
            policy.value.data.fill_(float("nan"))  # something outside of the engine
        seen.append(1)
        return share_of_threes(prompts, responses)

    seen: list = []
    learner = PPOTrainer(policy, TokenReward(spoilt), Uniform(), CONFIG)
    with pytest.raises(Diverged):
        learner.fit(PROMPTS, 9, out=tmp_path / "run", eval_every=20, save_every=1, keep=2)
    for folder in checkpoints(tmp_path / "run"):
        assert not manifest.why_not_whole(folder)
        assert all(
            bool(torch.isfinite(t).all()) for t in left_behind(tmp_path / "run", int(folder.name[11:]))[0].values()
        )
    assert checkpoints(tmp_path / "run")


def test_an_optimizer_that_nests_and_shares_its_tensors_is_restored():
    class Nested(torch.optim.SGD):
        """As bitsandbytes does: a dictionary within a parameter's state, and one table for all parameters."""

        def state_dict(self):
            held = super().state_dict()
            entries = {
                0: {"quantised": {"state1": torch.ones(3), "map": TABLE}, "step": 4},
                1: {"quantised": {"map": TABLE}},
            }
            return {**held, "state": entries}

        def load_state_dict(self, state):
            self.loaded = state["state"]

    TABLE = torch.arange(4.0)
    optimizer = Nested([torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    tensors = state_tensors(optimizer)
    numbers = json.loads(json.dumps(state_numbers(optimizer)))
    restore_state(optimizer, tensors, numbers)
    assert optimizer.loaded[0]["step"] == 4
    assert torch.equal(optimizer.loaded[1]["quantised"]["map"], TABLE)
    assert torch.equal(optimizer.loaded[0]["quantised"]["state1"], torch.ones(3))


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    table = torch.arange(4.0)
    state = TrainerState(numbers={}, tensors={"a": table, "b": table})
    save_checkpoint(tmp_path / "checkpoint-1", TablePolicy(), state, {})
    assert torch.equal(load_state(tmp_path / "checkpoint-1").tensors["b"], table)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_reward_that_forks_a_pool_does_not_hang(tmp_path):
    code = (
        "import sys, multiprocessing; from pathlib import Path; from resumable import *\n"
        "def pooled(prompts, responses):\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        return pool.map(len, responses)\n"
        "PPOTrainer(TablePolicy(), TokenReward(pooled), REDISTRIBUTORS['uniform'](), CONFIG)"
        ".fit(PROMPTS, 2, out=Path(sys.argv[1]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")]
    subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True, timeout=120)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    killed = int(in_a_new_process(run, "table", "uniform", 400, 1, "kills", 50))
    assert killed == 50
    reached = int(newest_complete(run)[0].name.removeprefix("checkpoint-"))
    assert 10 < reached < 400
    last = reached + 3
    in_a_new_process(run, "table", "uniform", last, 1, "resume")
    in_a_new_process(whole, "table", "uniform", last, 0, "new")
    assert_same(whole, run, last)


def start(out: Path, steps: int, save_every: int) -> subprocess.Popen:
    """A run in a process of its own, once it has taken two steps."""
    process = subprocess.Popen(
        command(out, "table", "uniform", steps, save_every, "new"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "status"),
    [
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGINT, "Ctrl-C (SIGINT)", 130),
    ],
)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(number, name, status, tmp_path):
    process = start(tmp_path / "run", 10_000, 0)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"\n{name}: the step in progress is finished and saved; once more ends at once" in said
    folder, passed_over = newest_complete(tmp_path / "run")
    assert not passed_over
    done = int(folder.name.removeprefix("checkpoint-"))
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == done
    fit(tmp_path / "run", "table", "uniform", done + 2, 0, resume=True)
    fit(tmp_path / "whole", "table", "uniform", done + 2, 0, resume=False)
    assert_same(tmp_path / "whole", tmp_path / "run", done + 2)


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_leaves_the_last_checkpoint(tmp_path):
    code = (
        "import sys; from pathlib import Path; from resumable import *; from resumable import Slow;"
        "PPOTrainer(Slow(), TokenReward(share_of_threes), REDISTRIBUTORS['uniform'](), CONFIG)"
        ".fit(PROMPTS, 4, out=Path(sys.argv[1]), eval_every=3, resume=True)"
    )
    fit(tmp_path / "run", "table", "uniform", 2, 0, resume=False)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert newest_complete(tmp_path / "run")[0].name == "checkpoint-2"


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        term = signal.getsignal(signal.SIGTERM)
        with stop_requests() as asked:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            for _ in range(2):  # a group that is told twice is asked once
                os.kill(os.getpid(), signal.SIGTERM)
            assert asked.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == term
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere():
        with stop_requests() as asked:
            found.append(asked.signal)

    found: list = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [None]


class Greedy(TablePolicy):
    """The disk is full in the middle of a save."""

    def save(self, folder):
        super().save(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)


def test_a_full_disk_is_said_with_what_is_needed_and_leaves_nothing_half_done(tmp_path):
    save_checkpoint(tmp_path / "checkpoint-1", TablePolicy(), TrainerState(numbers={}, tensors={}), {})
    state = TrainerState(numbers={}, tensors={"moment": torch.zeros(2**20)})
    with pytest.raises(
        OSError, match=r"a checkpoint needs about 4.0 MiB and .* are free; nothing was written"
    ) as error:
        save_checkpoint(tmp_path / "checkpoint-2", Greedy(), state, {})
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert not manifest.why_not_whole(tmp_path / "checkpoint-1")


FULL = """
import sys
from pathlib import Path
from resumable import *
small = Path(sys.argv[1])
fit(small / "run", "table", "uniform", 2, 1, resume=False)
(small / "ballast").write_bytes(bytes(4096 * int(sys.argv[2])))
try:
    fit(small / "run", "table", "uniform", 200, 1, resume=True)
except OSError as error:
    print(error.errno, error)
from rlhf_core.run.checkpoint import newest_complete
before = newest_complete(small / "run")
assert not before[1], before
(small / "ballast").unlink()
last = int(before[0].name.removeprefix("checkpoint-")) + 2
fit(small / "run", "table", "uniform", last, 1, resume=True)
fit(Path(sys.argv[3]) / "whole", "table", "uniform", last, 0, resume=False)
one, other = left_behind(small / "run", last), left_behind(Path(sys.argv[3]) / "whole", last)
assert one[1:] == other[1:] and all(torch.equal(one[0][name], other[0][name]) for name in one[0])
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a small file system of its own")
@pytest.mark.slow
def test_a_run_on_a_disk_that_really_fills_up_goes_on_once_there_is_room(tmp_path):
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=512k none {tmp_path}/small"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    script = f'{mount} && exec "{sys.executable}" -c "$0" {tmp_path}/small 60 {tmp_path}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, FULL], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{errno.ENOSPC} "), done.stdout + done.stderr
