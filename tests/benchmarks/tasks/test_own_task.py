"""A policy, prompts and a reward of the user's own, from the command line to the table."""

import io
import json
import pickle
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from transformers import LlamaForTokenClassification

from benchmarks.experiments.value_loss_variance import EXPERIMENT
from benchmarks.runs.arms import parse_arms
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import require_scored
from benchmarks.tasks.definitions import make_task
from benchmarks.tasks.own_task import OwnTask
from models.tiny import llama_config, save_tiny, tiny_tokenizer
from rlhf_core.checks import check_needs
from rlhf_core.config import PPOConfig
from rlhf_core.scorers.callables import TokenReward

REWARDS = """
from rlhf_core.scorers.callables import TokenReward
SEEN = []
def right(prompts, responses, answer):
    SEEN.extend(zip(prompts, answer))
    return [float(word in response) for response, word in zip(responses, answer)]
def asks(prompts, responses, solution):
    return responses
def one(response):
    return 0.0
def few(prompts, responses):
    return [0.0]
def words(prompts, responses):
    return ["good" for _ in responses]
def infinite(prompts, responses):
    return [float("inf") for _ in responses]
def fails(prompts, responses):
    return {}["reward"]
number = 3
by_ids = TokenReward(lambda prompts, responses: [len(response) for response in responses])
"""
SMALL = {"rollout_batch_size": 4, "minibatch_size": 4, "epochs": 1, "max_length": [3, 5]}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A policy, two classifiers, prompts, and a module of rewards, which can be imported."""
    folder = tmp_path_factory.mktemp("own")
    save_tiny(folder / "policy", seed=1, hidden_size=16, n_layers=1, n_heads=2)
    for labels in (1, 3):
        where = folder / f"reward{labels}"
        save_tiny(where, head="classifier", seed=2, hidden_size=16, n_layers=1, n_heads=2, num_labels=labels)
    rows = [{"prompt": f"w{2 + i} w{3 + i} w{4 + i}", "answer": f"w{2 + i % 9}"} for i in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards_of_mine.py").write_text(REWARDS)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("rewards_of_mine", None)


def task(places, reward="rewards_of_mine:right", **settings):
    where = {"policy": str(places / "policy"), "data": str(places / "prompts.jsonl")}
    return OwnTask(**{**where, "reward": reward, "held_out": 4, **settings})


def config(**changes):
    return PPOConfig(**{**SMALL, "max_length": (3, 5), **changes})


def test_it_holds_prompts_out_and_says_so(places, capsys):
    loaded = task(places).load()
    assert (len(loaded.train_prompts), len(loaded.held_out_prompts)) == (20, 4)
    assert capsys.readouterr().out == "prompts.jsonl: 20 prompts to train on, 4 held out\n"
    assert {*loaded.train_prompts[0]} == {"prompt", "answer"}


def test_more_held_out_than_were_asked_for_is_explained(places, tmp_path, capsys):
    prompts, texts = tmp_path / "many.jsonl", [f"w{2 + i % 9} w{3 + i // 9}" for i in range(81)]
    prompts.write_text("".join(json.dumps({"prompt": text, "answer": "w2"}) + "\n" for text in texts))
    loaded = task(places, data=str(prompts), held_out=2).load()
    held_out = len(loaded.held_out_prompts)
    assert held_out > 2
    assert capsys.readouterr().out == (
        f"many.jsonl: {81 - held_out} prompts to train on, {held_out} held out (always the tenth that a hash of the "
        "prompt picks; evaluated on: 2)\n"
    )
    assert [row["prompt"] for row in loaded.in_order()] == texts


def test_the_defaults_are_those_of_a_run_of_ones_own(places):
    own = task(places)
    assert {name: own.ppo[name] for name in ("max_length", "rollout_batch_size")} == {
        "max_length": PPOConfig().max_length,
        "rollout_batch_size": PPOConfig().rollout_batch_size,
    }
    assert "seed" not in own.ppo


def test_three_flags_make_a_task_of_ones_own(places):
    own = task(places)
    given = {"policy": own.policy, "data": own.data, "reward": own.reward, "eval_prompts": 4}
    settings = ComparisonSettings(**given)
    assert settings.task == "own"
    assert settings.make_task() == own == pickle.loads(pickle.dumps(own))
    assert replace(settings, steps=3).make_task() == own
    with pytest.raises(ValueError, match="task 'own' needs --data, --reward"):
        make_task("own", policy="somewhere")
    with pytest.raises(ValueError, match="belong together; give --data and --reward too"):
        ComparisonSettings(policy="somewhere")


def test_what_decides_its_numbers_is_in_the_settings_and_the_fingerprint(places, monkeypatch):
    own = task(places)
    assert own.code
    assert own == task(places)
    before = own.load().fingerprint
    assert task(places).load().fingerprint == before
    module = sys.modules["rewards_of_mine"]
    monkeypatch.setattr(module, "right", lambda prompts, responses, answer: [0.0] * len(prompts))
    assert task(places).code != own.code
    assert own.load().fingerprint != before


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            "rewards_of_mine:rite",
            "--reward rewards_of_mine:rite: rewards_of_mine .* has no 'rite'; did you mean 'right'?",
        ),
        ("rewards_of_yours:right", "rewards_of_yours cannot be imported"),
        ("rewards_of_mine:one", r"--reward rewards_of_mine:one: .* Write def one\(prompts, responses\)"),
        ("rewards_of_mine:number", "--reward rewards_of_mine:number: it is not a function of .* but 3"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_once(places, reward, said):
    with pytest.raises(ValueError, match=said):
        task(places, reward)


def test_a_column_that_is_missing_is_named_before_anything_is_loaded(places):
    with pytest.raises(
        ValueError, match="asks for the column 'solution', which the prompts do not have: they have 'an"
    ):
        task(places, "rewards_of_mine:asks", policy=str(places)).load()  # which holds no model


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("few", r"reward few returned scores of shape \(1,\) for 4 responses"),
        ("words", "reward words must return a number for each of the 4 responses, got"),
        ("infinite", "tried on 4 responses: scores: 4 of 4 rows are not finite; row 0: inf for"),
        ("fails", r"tried on 4 responses and raised KeyError: 'reward' \(line \d+ of .*rewards_of_mine.py\)"),
    ],
)
def test_what_a_function_returns_is_tried_before_any_run(places, reward, said):
    loaded = task(places, f"rewards_of_mine:{reward}").load()
    with pytest.raises(ValueError, match=said):
        require_scored(loaded, config())


def test_an_object_with_a_reward_and_a_classifier_are_taken_too(places):
    assert isinstance(task(places, "rewards_of_mine:by_ids").load().reward, TokenReward)
    assert not task(places, str(places / "reward1")).code
    assert task(places, str(places / "reward1")).load().reward.score_ids([[2, 3]]).shape == (1,)
    named = r"which is the reward. Name its label with --reward_label, one of 'LABEL_0' \(0\), 'LABEL_1' \(1\), 'LAB"
    with pytest.raises(ValueError, match=f"has 3 labels, and nothing says {named}"):
        task(places, str(places / "reward3")).load()
    assert task(places, str(places / "reward3"), reward_label="LABEL_1").load().reward


def test_a_process_reward_model_is_named_by_its_module_and_not_by_its_folder(places):
    model = LlamaForTokenClassification(llama_config(num_labels=2, hidden_size=16, n_layers=1))
    model.save_pretrained(places / "steps")
    tiny_tokenizer().save_pretrained(places / "steps")
    with pytest.raises(ValueError, match="is a token classifier, .*; load_process_reward_model takes it"):
        task(places, str(places / "steps")).load()
    load = f"load_process_reward_model({str(places / 'steps')!r}, separator='w7')"
    (places / "steps_of_mine.py").write_text(f"from models import load_process_reward_model\nsteps = {load}\n")
    loaded = task(places, "steps_of_mine:steps").load()
    require_scored(loaded, config())
    (arm,) = parse_arms("redistributors.OwnRewards")
    check_needs(arm.redistributor(), loaded.policy, loaded.reward)
    assert task(places, "steps_of_mine:steps").code


def test_from_the_flags_to_the_table(places, tmp_path, request):
    request.getfixturevalue("in_threads")
    request.getfixturevalue("undrawn")
    own = task(places)
    settings = ComparisonSettings(
        policy=own.policy,
        data=own.data,
        reward=own.reward,
        redistributors="sparse,uniform",
        controls="",
        seeds=2,
        steps=1,
        eval_prompts=2,
        out=str(tmp_path / "out"),
    )
    text = io.StringIO()
    EXPERIMENT.run(settings, settings.make_task(), SMALL, Console(file=text, width=80))
    assert text.getvalue().startswith("own: responses of 1 to 5 tokens, 4 a step (--ppo.max_length")
    assert (tmp_path / "out" / "table.md").is_file()
    asked = dict(sys.modules["rewards_of_mine"].SEEN)
    rows = [json.loads(line) for line in (places / "prompts.jsonl").read_text().splitlines()]
    assert {*asked.items()} <= {(row["prompt"], row["answer"]) for row in rows}
    run = json.loads((tmp_path / "out" / "runs" / "sparse" / "seed-0" / "run.json").read_text())
    assert run["settings"]["task"]["code"] == own.code
