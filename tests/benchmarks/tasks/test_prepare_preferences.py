"""Summarisation and dialogue from rows to PPO: from scratch, and through adapters on a 4-bit Llama."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.data.preference_formats import Example
from benchmarks.data.preference_tokens import TokenisedExample
from benchmarks.prepare import PREPARATIONS, main
from benchmarks.runs.arms import parse_arms
from benchmarks.runs.comparison import Panel, plan
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import execute, gold_instruments, require_runnable
from benchmarks.tasks import prepare_preferences as prepare_preferences_module
from benchmarks.tasks.definitions import PreferenceTask, make_task
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.preparation_settings import TASK_DEFAULTS, PreferencePreparation
from benchmarks.tasks.prepare_preferences import prepare_preferences
from benchmarks.tasks.prepared_folder import read_prompts
from models import LoraSettings
from models.tiny import save_tiny
from models.training.settings import TrainingSettings

QUICK = TrainingSettings(steps=2, batch_size=4)
STAGES = {"language": QUICK, "supervised": QUICK, "reward": QUICK}
WORDS = ["w2", "w3", "w4", "w5", "w6", "w7"]


def write_comparisons(file, number=80):
    generator = np.random.default_rng(0)

    def text(words):
        return " ".join(generator.choice(WORDS, words))

    with file.open("w") as lines:
        for _ in range(number):
            row = {"prompt": text(6), "chosen": text(4), "rejected": text(3)}
            lines.write(json.dumps(row) + "\n")
        lines.write(json.dumps({"prompt": "w2", "chosen": "w3"}) + "\n")
    return str(file)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_comparisons(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def prepared(task, out, rows, **changes):
    settings = PreferencePreparation(
        **{**TASK_DEFAULTS[task], "comparisons": rows, "out": str(out), **STAGES, **changes}
    )
    return prepare_preferences(settings)


@pytest.fixture(scope="module")
def summaries(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("summaries") / "out"
    small = {"size": "micro", "max_prompt_tokens": 64, "max_response_tokens": 24}
    return out, prepared("summarisation", out, rows, folds=2, **small)


def test_prepare_reports_what_it_measured_and_left_out(summaries):
    out, report = summaries
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["reward_model"]["pairs"] == report["data"]["comparisons"]["held_out"] > 0
    assert 0 <= report["reward_model"]["longer_wins"] <= 1
    assert report["language_model"]["whole_texts"]["perplexity"] > 1
    assert report["data"]["left_out"]["comparisons"] == {"no column 'rejected'": 1}
    assert len(report["samples"]) > 0
    assert json.loads((out / "run.json").read_text())["settings"]["size"] == "micro"


def test_the_reward_model_stands_beside_the_baselines_on_the_same_pairs(summaries):
    report = summaries[1]
    held, every = report["accuracy"]["held_out"], report["accuracy"]["all_pairs"]
    assert held["pairs"] == report["data"]["comparisons"]["held_out"]
    assert every["pairs"] == sum(report["data"]["comparisons"].values())
    assert every["reward_model_folds"] == 2
    rules = {"reward_model", "surface_features", "length_alone"}
    for found in (held, every):
        assert rules <= set(found)
        assert all(0 <= found[rule]["mean"] <= 1 for rule in rules)
    assert held["reward_model"]["mean"] == pytest.approx(report["reward_model"]["accuracy"])  # without ties
    assert every["length_alone"]["mean"] > 0.9  # the preferred responses have one word more


def test_cross_validation_tests_every_pair_once_on_a_fresh_model_that_read_no_pair_of_its_prompt(
    monkeypatch, tmp_path, rows
):
    settings = PreferencePreparation(comparisons=rows, out=str(tmp_path), folds=3)
    examples = [
        TokenisedExample(
            key=str(i // 2), text="", prompt=(1,), reward_prompt=(1,), responses=((i,), (i + 1,)),
            written=Example(prompt=(), responses=("a", "b")),
        )
        for i in range(20)
    ]  # fmt: skip
    models, start = [], prepare_preferences_module.Start(tokenizer=None, model=None, source=None)

    def fresh(*_):
        models.append(object())
        return models[-1]

    def learn(_, model, learned, tested, measured):
        assert model is models[-1]
        measured["accuracy"] = 0.5
        assert not {row.key for row in learned} & {row.key for row in tested}
        assert len(learned) + len(tested) == 20
        return np.array([float(row.responses[0][0]) for row in tested])

    monkeypatch.setattr(prepare_preferences_module, "_new_reward_model", fresh)
    monkeypatch.setattr(prepare_preferences_module, "_learn", learn)
    margins = prepare_preferences_module._cross_validated_margins(settings, start, None, examples)
    assert margins.tolist() == list(range(20))
    assert len(set(map(id, models))) == 3


def test_more_folds_than_prompts_are_refused_before_training(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_preferences_module, "_fine_tuned", None)  # never called
    with pytest.raises(ValueError, match="500 folds need 500 prompts or more, and the comparisons have 80"):
        prepared("summarisation", tmp_path / "out", rows, size="micro", folds=500)


def test_no_prompt_is_both_learned_from_and_tested_on(summaries):
    splits = read_prompts(str(summaries[0]))
    texts = {split: {row["text"] for row in some} for split, some in splits.items()}
    assert texts["train"]
    assert texts["held_out"]
    assert not texts["train"] & texts["held_out"]


def one_run(task, tmp_path, arm="abc", **ppo):
    chosen = ComparisonSettings(
        out=str(tmp_path / "out"), redistributors=[arm], controls="", seeds=[0], steps=2, eval_prompts=3
    )
    small = {"rollout_batch_size": 4, "minibatch_size": 2, "epochs": 1, "min_length": 2, "max_length": [4, 8], **ppo}
    config = with_settings(with_settings(PAPER_SETTINGS, task.ppo), small)
    (run,) = plan(chosen, task, Panel(), config)
    loaded = task.load()
    require_runnable(loaded, run)
    return replace(run, fingerprint=loaded.fingerprint), loaded


@pytest.mark.parametrize("arm", ["abc", "abc-d"])
def test_ppo_on_prepared_summaries(summaries, tmp_path, arm):
    task = make_task("summarisation", models=str(summaries[0]))
    assert task.ppo["rollout_batch_size"] == 8  # made small: not the paper's settings
    run, loaded = one_run(task, tmp_path, arm)
    assert loaded.gold is None
    assert gold_instruments(loaded) == []
    execute(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert abs(lines[0]["kl"]) < 1e-4
    assert lines[1]["kl"] != 0


@pytest.mark.slow
def test_dialogue_in_4_bit_with_adapters_and_a_reward_model_of_its_own_template(rows, tmp_path):
    """Policy, reference, value head and reward model on 4-bit Llamas: the shape of the paper's third task."""
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", "llama", hidden_size=64, context=128, std=0.1)
    out = tmp_path / "made"
    report = prepared(
        "dialogue", out, rows, base=base, lora=LoraSettings(rank=4, alpha=4), four_bit=True, dtype="bfloat16",
        max_prompt_tokens=64, max_response_tokens=32,
    )  # fmt: skip
    assert "whole_texts" not in report["language_model"]
    assert (out / "policy" / "adapter_model.safetensors").exists()
    assert (out / "reward" / "adapter_model.safetensors").exists()
    loading = Loading(four_bit=True, dtype="bfloat16", gradient_checkpointing=True)
    task = make_task("dialogue", models=str(out), loading=loading)
    assert task.ppo == {
        **{"rollout_batch_size": 16, "minibatch_size": 1, "max_grad_norm": None, "epochs": 10},
        **{"min_length": 8, "max_length": (256, 256)},
    }
    run, loaded = one_run(task, tmp_path)
    prompt = loaded.train_prompts[0]
    assert loaded.reward.renderings[prompt] != prompt
    execute(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["conservation_error"] < 1e-4
    assert (run.folder / "checkpoint-2" / "policy" / "value_head.safetensors").exists()


def test_a_base_that_reads_too_little_is_refused_before_training(rows, tmp_path):
    base = save_tiny(tmp_path / "base", "gpt2", context=64)
    with pytest.raises(ValueError, match="reads at most 64 tokens, rows of 80 are asked for"):
        prepared("dialogue", tmp_path / "out", rows, base=base, max_prompt_tokens=48, max_response_tokens=32)
    assert not (tmp_path / "out").exists()


def test_a_base_is_kept_and_its_lowest_layer_carries_the_reward_in_every_fold(rows, tmp_path):
    base, out = save_tiny(tmp_path / "base", "gpt2", context=64), tmp_path / "out"
    small = {"max_prompt_tokens": 40, "max_response_tokens": 24, "supervised": None, "language": None}
    given = {"base": base, "keep_base": True, "reward_layers": 1, "frozen_layers": 1, **small}
    report = prepared("dialogue", out, rows, **given, folds=2)
    before, policy, reward = (
        load_file(Path(folder) / "model.safetensors") for folder in (base, out / "policy", out / "reward")
    )
    assert all(torch.equal(value, before[name]) for name, value in policy.items())
    assert not [name for name in reward if ".h.1." in name]
    frozen = [name for name in reward if ".h.0." in name or "wte" in name]
    assert len(frozen) > 5
    assert all(torch.equal(reward[name], before[name]) for name in frozen)
    assert report["language_model"].keys() == {"perplexity", "seconds"}
    with pytest.raises(ValueError, match="has 2 layers; reward_layers 3"):
        prepared("dialogue", tmp_path / "none", rows, **{**given, "reward_layers": 3})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": "tiny", "base": "gpt2"}, "not both"),
        ({"keep_base": True}, "give --base, no --supervised, no --lora"),
        ({"keep_base": True, "base": "gpt2", "supervised": QUICK}, "no --supervised"),
        ({"keep_base": True, "base": "gpt2", "lora": LoraSettings()}, "no --lora"),
        ({"frozen_layers": 2, "base": "gpt2", "lora": LoraSettings()}, "are for whole models; leave out --lora"),
        ({"reward_layers": 0}, "reward_layers must be 1 or more, got 0"),
        ({"lora": LoraSettings()}, "lora trains adapters on a base"),
        ({"base": "gpt2", "four_bit": True}, "all weights are trained in float32"),
        ({"folds": 1}, "folds must be 0 .* or 2 or more, got 1"),
        ({"folds": -2}, "got -2"),
        ({"max_prompt_tokens": 1000}, "exceed context 1024"),
        ({"template": "none"}, "is none of plain"),
        ({"reward_template": "none"}, "is none of plain"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        PreferencePreparation(comparisons="x", out="y", **changes)


def test_the_command_line_ends_with_a_reason(tmp_path, capsys):
    argv = ["dialogue", "--comparisons", str(tmp_path / "absent.jsonl"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(argv)
    assert f"error: no file {tmp_path / 'absent.jsonl'}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--lora.rank", "4"])
    assert "lora trains adapters" in capsys.readouterr().err
    assert set(PREPARATIONS) == {"positive_generation", "summarisation", "dialogue"}


def test_hub_tasks_render_prompts_in_both_templates(rows, tmp_path):
    """The path of the paper's own models, with folders in their place."""
    policy = save_tiny(tmp_path / "policy", "llama", context=128)
    reward = save_tiny(tmp_path / "reward", "llama", head="classifier", context=128)
    task = make_task("dialogue", policy=policy, reward=reward, data=rows)
    assert isinstance(task, PreferenceTask)
    loaded = task.load()
    assert len(loaded.train_prompts) + len(loaded.held_out_prompts) == 80
    assert len(loaded.reward.renderings) == len({*loaded.train_prompts, *loaded.held_out_prompts})
    run, _ = one_run(task, tmp_path)
    execute(run)
    assert parse_arms("abc")[0].label == "abc"
