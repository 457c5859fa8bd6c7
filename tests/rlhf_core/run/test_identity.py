"""A run is taken up by what it was begun with, or not at all; and from a sound checkpoint of its own."""

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fakes import TablePolicy
from resumable import CONFIG, PROMPTS, share_of_threes
from table_trainer import Learner

from redistributors import PotentialProjection, Uniform
from rlhf_core import PPOTrainer, TokenReward
from rlhf_core.distributed import COUNTS, require_one_process
from rlhf_core.run import manifest
from rlhf_core.run.description import described
from rlhf_core.run.loggers import JSONLines, TensorBoard, WeightsAndBiases
from rlhf_core.types import Scored


def learner(method=None, *, policy=None, reward=share_of_threes, loggers=(), **changes):
    scorer = TokenReward(reward) if callable(reward) else reward
    return PPOTrainer(policy or TablePolicy(), scorer, method or Uniform(), CONFIG, loggers, **changes)


def begun(folder, steps=2, **made):
    learner(**made).fit(PROMPTS, steps, out=folder)
    return folder


def taken_up(folder, steps=3, prompts=PROMPTS, **made):
    learner(**made).fit(prompts, steps, out=folder, resume=True)


class Rated(Learner):
    """A method that learns, with a setting and without a representation of its own."""

    def __init__(self, rate, bias=None):
        super().__init__()
        self.rate, self._bias = rate, bias


class Share:
    """A reward model: the share of one token."""

    def __init__(self, token):
        self.token = token

    def provides(self, request):
        return False

    def score(self, sequences, needs):
        return Scored(scores=torch.tensor([row.count(self.token) / 4 for row in sequences.responses()]), evidence={})


def weighted(prompts, responses, weight=1.0):
    return [weight * len(row) for row in responses]


def test_settings_of_a_method_that_learns_are_compared_and_what_it_learned_is_not(tmp_path):
    run = begun(tmp_path / "run", method=Rated(0.1, torch.arange(5000.0)))
    with pytest.raises(ValueError, match=r"redistributor was 'Rated\(rate=0.1, .*and is 'Rated\(rate=0.2"):
        taken_up(run, method=Rated(0.2, torch.arange(5000.0)))
    other = torch.arange(5000.0)
    other[2500] = -1  # where torch's representation shows dots
    with pytest.raises(ValueError, match=r"redistributor was"):
        taken_up(run, method=Rated(0.1, other))
    taken_up(run, method=Rated(0.1, torch.arange(5000.0)))
    assert described(PotentialProjection()) == repr(PotentialProjection())
    assert described(PotentialProjection()) != described(PotentialProjection(inner=Uniform()))


def test_what_a_function_was_made_with_tells_it_from_others_and_what_it_counts_does_not():
    def made(weight):
        calls, seen = 0, []

        def scorer(prompts, responses):
            nonlocal calls
            calls += 1
            seen.append(calls)
            return [weight for _ in responses]

        return scorer

    one = made(1.0)
    before = described(one)
    one([], [[]])
    assert described(one) == before == described(made(1.0)) != described(made(2.0))
    assert described(lambda p, r: 1) != described(lambda p, r: 2)
    assert described(partial(weighted, weight=2.0)) != described(partial(weighted, weight=3.0))
    assert described({"b", "a"}) == "set({'a', 'b'})"

    @dataclass
    class Judge:
        rubric: str
        api_key: str

    assert described(Judge("short", "sk-1")).endswith("Judge(rubric='short')")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reward": weighted}, "reward was 'TokenReward.*share_of_threes.*' and is 'TokenReward.*weighted"),
        ({"method": Learner()}, "redistributor was 'Uniform.*' and is 'Learner"),
        ({"policy": TablePolicy(seed=1)}, "reference of the first prompts were"),
        (
            {"optimizer": lambda ps, c: torch.optim.AdamW([{"params": [*ps], "weight_decay": 0.3}])},
            "parameter_groups was",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_not_restored_and_nothing_moves(changed, words, tmp_path):
    run = begun(tmp_path / "run")
    other = learner(**changed)
    before = [parameter.clone() for parameter in other.policy.parameters()]
    with pytest.raises(ValueError, match=rf"belongs to a run with other settings: .*{words}"):
        other.restore(run / "checkpoint-2")
    assert other.steps_done == 0
    assert all(torch.equal(one, two) for one, two in zip(before, other.policy.parameters(), strict=True))


def test_a_checkpoint_with_other_prompts_or_another_reward_model_does_not_go_on_a_run(tmp_path):
    for name, made in {"own": {"reward": Share(3)}, "rewards": {"reward": Share(1)}}.items():
        begun(tmp_path / name, **made)
    learner(reward=Share(3)).fit(PROMPTS[1:], 2, out=tmp_path / "prompts")
    for name, words in {
        "rewards": "scores of the first prompts were",
        "prompts": "prompts was '5|prompts was '4",
    }.items():
        shutil.rmtree(tmp_path / "own/checkpoint-2")
        shutil.copytree(tmp_path / name / "checkpoint-2", tmp_path / "own/checkpoint-2")
        with pytest.raises(ValueError, match=words):
            taken_up(tmp_path / "own", reward=Share(3))


def test_a_function_that_was_put_right_goes_on_with_a_warning(tmp_path):
    begun(tmp_path / "run")

    def share_of_threes(prompts, responses):
        return [row.count(3) / max(len(row), 1) for row in responses]

    share_of_threes.__qualname__ = "share_of_threes"
    with pytest.warns(RuntimeWarning, match="other versions, .* code of the reward function was"):
        taken_up(tmp_path / "run", reward=share_of_threes)


def test_a_copy_under_another_number_is_set_aside_or_refused(tmp_path):
    run = begun(tmp_path / "run")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-4")
    with pytest.raises(ValueError, match="named after step 4, and state.json says steps_done 2"):
        learner().restore(run / "checkpoint-4")
    with pytest.warns(RuntimeWarning, match="going on from checkpoint-2; .*named after step 4"):
        taken_up(run, steps=4)
    assert (run / "checkpoint-4.broken").is_dir()


def leaves(value, path=()):
    """Where every key of a state stands."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from leaves(item, (*path, key))


def resealed(folder, state):
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").unlink()
    manifest.seal(folder)


OF_OTHER_KINDS = [pytest.param(damage, marks=pytest.mark.slow) for damage in ([], {}, True, None, -1, 10**400)]


@pytest.mark.parametrize("damage", ["drop", "text", *OF_OTHER_KINDS])
def test_whatever_is_wrong_in_a_resealed_state_is_one_clear_error(damage, tmp_path):
    run = begun(tmp_path / "run", steps=1)
    whole = (run / "checkpoint-1/state.json").read_text()
    taker = learner()
    for path in [*leaves(json.loads(whole))]:
        state = json.loads(whole)
        holder = state
        for key in path[:-1]:
            holder = holder[key]
        if damage == "drop":
            del holder[path[-1]]
        else:
            holder[path[-1]] = damage
        resealed(run / "checkpoint-1", state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                taker.restore(run / "checkpoint-1")
                taker = learner()  # a number that a run may reach as well
            except ValueError as error:
                said = str(error)
                assert str(run / "checkpoint-1") in said, path  # most of them fall, some stand
                assert taker.steps_done == 0, path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps_done": "two"}, "named after step 1"),
        ({"kl_coef": "x"}, "kl_coef is 'x', where a number is expected"),
        (
            {"guard": {"in_a_row": 0, "norms": -3, "mean_norm": 0.1}},
            "guard.norms is -3, where a whole number, 0 or more",
        ),
        ({"budgets": {"sampling": "many"}}, "budgets.sampling is 'many', where a whole number above 0"),
        ({"schedule": {}}, "schedule._last_lr is missing"),
        ({"optimizer": []}, r"optimizer is \[\], where an object is expected"),
        ({"tensors": {}}, "trainer.safetensors holds other tensors than its state.json lists: optimizer.0/exp_avg"),
        ({"kl_coef": float("nan")}, "NaN is a number that a run never writes"),
    ],
)
def test_a_damaged_state_is_named_and_an_older_checkpoint_taken(change, words, tmp_path):
    run = tmp_path / "run"
    learner().fit(PROMPTS, 2, out=run, save_every=1)
    state = json.loads((run / "checkpoint-2/state.json").read_text())
    resealed(run / "checkpoint-2", state | change)
    with pytest.warns(RuntimeWarning, match=rf"going on from checkpoint-1; .*{words.replace('step 1', 'step 2')}"):
        taken_up(run)


def fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "trainer.safetensors", "policy/table.safetensors"])
@pytest.mark.parametrize(
    "trap", [fifo, lambda p: (p.unlink(), p.symlink_to("/dev/zero")), lambda p: (p.unlink(), p.mkdir())]
)
def test_a_checkpoint_with_a_trap_for_a_file_is_refused_at_once(name, trap, tmp_path):
    folder = begun(tmp_path / "run", steps=1) / "checkpoint-1"
    trap(folder / name)
    with pytest.raises(ValueError, match="is not a regular file|is a link|is missing|cannot be read"):
        learner().restore(folder)


def test_a_trap_beside_the_files_a_linked_folder_and_a_vast_manifest_are_refused(tmp_path):
    folder = begun(tmp_path / "run", steps=1) / "checkpoint-1"
    os.mkfifo(folder / "policy/adapter_config.json")
    assert manifest.why_not_whole(folder) == "policy/adapter_config.json is not a regular file"
    (folder / "policy/adapter_config.json").unlink()
    (tmp_path / "link").symlink_to(folder)
    assert "it is a link" in manifest.why_not_whole(tmp_path / "link")
    os.truncate(folder / "manifest.json", 2**40)  # without a byte on the disk
    assert "is larger than" in manifest.why_not_whole(folder)


@pytest.mark.parametrize("name", ["settings.json", "metrics.jsonl", "samples.jsonl"])
def test_records_of_a_run_that_are_links_are_not_followed(name, tmp_path):
    run = begun(tmp_path / "run", steps=1)
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(ValueError, match=f"{name} is a link"):
        taken_up(run)
    assert (tmp_path / "elsewhere").read_bytes() == before


@pytest.mark.parametrize("name", COUNTS)
def test_one_of_several_processes_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    made = learner()
    monkeypatch.setenv(name, "2")
    for refused in (learner, lambda: made.step(PROMPTS)):
        with pytest.raises(ValueError, match=rf"one of several processes \({name}=2\)"):
            refused()


def test_a_process_group_counts_too(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="a process group of 2"):
        require_one_process()


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in (2, 4, 5):  # checkpoints 2, 4, 5
        writer = TensorBoard(str(tmp_path / "events"))
        taken_up(tmp_path / "run", steps=steps, loggers=(writer,))
        writer.close()
        if steps == 4:
            shutil.rmtree(tmp_path / "run/checkpoint-4")  # as if it had been killed before
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("score")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Tensors("samples/text_summary")] == [0, 2, 4, 5]


def test_lines_and_weights_and_biases_get_every_step_once(tmp_path, monkeypatch):
    sent, shown = [], []

    def log(figures, step):
        (shown if "samples" in figures else sent).append(step)

    run = SimpleNamespace(log=log, finish=lambda: None, starting_step=0)
    stub = SimpleNamespace(init=lambda **given: run, Table=lambda columns, data: data)
    monkeypatch.setitem(__import__("sys").modules, "wandb", stub)
    for steps in (2, 4, 5):
        loggers = (JSONLines(tmp_path / "own.jsonl", mode="append"), WeightsAndBiases("p", run_id="a"))
        taken_up(tmp_path / "run", steps=steps, loggers=loggers)
        loggers[0].close()
        run.starting_step = max(sent) + 1
        if steps == 4:
            shutil.rmtree(tmp_path / "run/checkpoint-4")
    assert sent == [1, 2, 3, 4, 5]
    assert shown == [0, 2, 4, 5]
    lines = [json.loads(line)["step"] for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5]
