"""A critic by flags: where its model comes from, what is refused before anything is loaded, and a run with one."""

import json
from pathlib import Path

import pytest
from tiny_toy import TINY

from benchmarks import train as train_command
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.tasks.definitions import Toy
from benchmarks.tasks.loaded import task_fingerprint
from benchmarks.tasks.model_loading import critic_model
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.own_task import OwnTask
from models.tiny import save_tiny
from models.weights.lora_settings import LoraSettings

MODEL = Loading(critic="model")
SIZES = {"hidden_size": 16, "n_layers": 1, "n_heads": 2}


def shorter(prompts, responses):
    """Few words."""
    return [-float(len(response.split())) for response in responses]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    save_tiny(folder / "policy", seed=1, **SIZES)
    save_tiny(folder / "reward", head="classifier", seed=2, **SIZES)
    rows = [{"prompt": f"w{2 + i} w{3 + i}"} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_critic_starts_from_the_reward_model_unless_another_is_named():
    assert critic_model(MODEL, "reward") == "reward"
    assert critic_model(Loading(critic="model", critic_model="other"), "reward") == "other"
    assert critic_model(Loading(), "reward") is None
    with pytest.raises(ValueError, match="the reward is a function: name .*--loading.critic_model"):
        critic_model(MODEL, None)


def test_every_task_hands_its_reward_model_on(places, tmp_path):
    toy = Toy(cache=str(tmp_path), recipe=TINY, loading=MODEL).load()
    own = OwnTask(
        policy=str(places / "policy"),
        data=str(places / "prompts.jsonl"),
        reward=str(places / "reward"),
        loading=MODEL,
        held_out=2,
    ).load()
    for loaded in (toy, own):
        assert loaded.policy.critic.apart
        assert loaded.policy.value_head.linear.weight.any()  # the classifier's score


def test_what_cannot_be_is_refused_before_anything_is_loaded(places, tmp_path):
    with pytest.raises(ValueError, match=r"policy's adapter.*--loading.lora.rank 8"):
        Toy(cache=str(tmp_path / "nothing"), recipe=TINY, loading=Loading(critic="adapter"))
    Toy(recipe=TINY, loading=Loading(critic="adapter", lora=LoraSettings(rank=4)))
    with pytest.raises(ValueError, match="critic_model 'x' needs critic 'model', and critic is 'shared'"):
        Loading(critic_model="x")
    with pytest.raises(ValueError, match="the reward is a function"):
        OwnTask(policy="p", data="d", reward=f"{__name__}:shorter", loading=MODEL)
    arms = "sparse@advantages=rloo@responses_per_prompt=2"
    settings = ComparisonSettings(redistributors=arms, controls="", loading=MODEL)
    with pytest.raises(ValueError, match=r"arm sparse@advantages=rloo.*'rloo' have no critic.*critic at 'shared'"):
        settings.require_ppo({})
    ComparisonSettings(redistributors=arms, controls="").require_ppo({})
    assert not (tmp_path / "nothing").exists()


def test_the_weights_of_a_named_model_are_in_the_fingerprint(tmp_path):
    def found(weights):
        (tmp_path / "model.safetensors").write_bytes(weights)
        return task_fingerprint([], Loading(critic="model", critic_model=str(tmp_path)), ((1, 2),))

    assert found(b"one") == found(b"one") != found(b"two")


def test_the_command_trains_with_a_warm_up(places, tmp_path, capsys):
    flags = ["--policy", str(places / "policy"), "--data", str(places / "prompts.jsonl")]
    flags += ["--reward", str(places / "reward"), "--steps", "2", "--eval_prompts", "2", "--out", str(tmp_path / "run")]
    flags += ["--ppo.rollout_batch_size", "4", "--ppo.minibatch_size", "4", "--ppo.max_length", "[3, 5]"]
    flags += ["--loading.critic", "adapter", "--loading.lora.rank", "2", "--ppo.critic_warmup", "1"]
    train_command.main(flags)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["critic_warmup_steps"] for row in rows] == [1, 1]
    assert [row["gradient_norm"] > 0 for row in rows] == [False, True]
    assert all(row["critic_gradient_norm"] > 0 for row in rows)
    with pytest.raises(SystemExit):
        train_command.main([*flags, "--loading.critic", "shared"])
    assert "critic" in capsys.readouterr().err
