"""Commands answer ``--help``, a typo and a wrong value before anything heavy is imported. Modules are counted, not
seconds: torch alone takes two of them."""

import json
import subprocess
import sys

import pytest

HEAVY = frozenset(
    {
        *("torch", "transformers", "peft", "scipy", "numpy", "matplotlib", "datasets", "bitsandbytes", "accelerate"),
        *("pandas", "pyarrow", "tokenizers", "safetensors", "huggingface_hub", "jaxtyping", "einops"),
    }
)
COMMANDS = (
    *("env", "presets", "report", "check", "compare", "train", "credit_of_text"),
    *("value_loss_variance", "beta_sweep", "generation_length", "length_drift", "over_optimisation"),
    *("reward_kl", "sampling_mismatch", "learning_curves", "positive_generation", "summarisation", "dialogue"),
    *("evidence_cost", "levers", "memory", "sampling_speed", "throughput", "card"),
    *("table1", "credit_faithfulness", "gradient_quality", "preference", "theory"),
)
"""Modules below ``benchmarks`` that are light: a command that becomes light is added here."""
SETTINGS = (
    *("rlhf_core", "redistributors", "models", "rlhf_core.config", "models.weights.lora_settings"),
    *("models.weights.dtype_names", "models.training.settings", "models.rewards.score_names"),
    *("benchmarks.tasks.model_settings", "benchmarks.tasks.training_recipes", "benchmarks.base.command_line"),
    *("benchmarks.credit.settings", "benchmarks.judging.settings", "benchmarks.base.out_folder"),
)
"""Modules that a command file may import at its top."""
CALLS = """
import contextlib, io, json, runpy, sys
for words in json.load(sys.stdin):
    out, err, sys.argv = io.StringIO(), io.StringIO(), words
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
            if isinstance(status, str):
                status = bool(print(status, file=err)) or 1
    print(json.dumps([status, out.getvalue(), err.getvalue(), sorted({name.split(".")[0] for name in sys.modules})]))
"""
"""Calls one after the other in one process: what none of them may import, the first that does has imported."""


def answers(calls):
    """Of every call (module, then words): exit status, what it printed, its errors. None imports anything heavy."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS], input=json.dumps(calls), capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(calls)
    for words, (*_, modules) in zip(calls, found, strict=True):
        assert HEAVY & set(modules) == set(), words
    return [answer[:3] for answer in found]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_imported_without_anything_heavy(name):
    code = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & {module.split(".")[0] for module in json.loads(done.stdout)} == set()


def test_the_list_of_commands_imports_nothing_heavy():
    answers([["benchmarks", *words] for words in ([], ["--help"], ["--version"], ["evn"])])


def test_help_and_a_typo_import_nothing_heavy():
    names = [f"benchmarks.{name}" for name in COMMANDS]
    for name, (status, printed, _) in zip(names, answers([[name, "--help"] for name in names]), strict=True):
        assert status == 0, name
        assert printed.startswith(f"usage: python -m {name}")
    mistyped = answers([[name, "--no-such-flag", "3"] for name in names])
    for name, (status, _, error) in zip(names, mistyped, strict=True):
        assert status == 2, name
        assert error.startswith(f"python -m {name}: error: --no_such_flag")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("theory --worlds 0", "--worlds must be 1 or more, got 0"),
        ("theory --out FULL", "is not empty; choose another --out"),
        ("credit_faithfulness --continuations 3", "--continuations must be even"),
        ("gradient_quality --sparse_steps [1,1]", "--sparse_steps must be different numbers"),
        ("preference --first a --second b --prompts FILE", "name one judge"),
        ("preference --first a --second b --prompts nowhere.json", "there is no file nowhere.json"),
        (
            "preference --first a --second b --prompts FILE --endpoint.url http://x --endpoint.model y",
            "unencrypted",
        ),
        ("preference --first a --second b --prompts FILE --sampling.template x", "--sampling.template must hold"),
    ],
)
def test_a_wrong_value_imports_nothing_heavy(words, said, tmp_path):
    (tmp_path / "theirs").touch()
    name, *values = words.replace("FULL", str(tmp_path)).replace("FILE", str(tmp_path / "theirs")).split()
    ((status, _, error),) = answers([[f"benchmarks.{name}", *values]])
    assert status == 2
    assert said in error


@pytest.mark.parametrize("task", ["positive_generation", "summarisation", "dialogue"])
def test_a_preparation_is_refused_before_anything_heavy_is_imported(task, tmp_path):
    data = {"positive_generation": "--data"}.get(task, "--comparisons")
    wrong = {
        (task, "--no_such"): f"benchmarks.prepare {task}: error: --no_such",
        (task, "--out", str(tmp_path / "out"), data, "absent.jsonl"): "error: no file absent.jsonl",
        (task[:-1],): f"error: no task '{task[:-1]}'; did you mean '{task}'?",
        (task, "--out", "o", data, "x", "--size", "huge"): "--size: must be one of micro, tiny, small, gpt2",
    }
    refused = answers([["benchmarks.prepare", *words] for words in wrong])
    for said, (status, _, error) in zip(wrong.values(), refused, strict=True):
        assert status == 2
        assert said in error
    for _, printed, _ in answers([["benchmarks.prepare", *words] for words in (["--help"], [task, "--help"])]):
        assert printed.startswith("usage: python -m benchmarks.prepare")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--redistributors", "sprase"], "no redistributor 'sprase'; did you mean 'sparse'?"),
        (["--redistributors", "sparse@lamm=1"], "arm sparse@lamm=1: no PPO setting 'lamm'; did you mean 'lam'?"),
        (["--ppo.lam", "3"], "--ppo.lam must be in [0, 1], got 3"),
        (["--ppo.rollout_batch_size", "2"], "minibatch_size 4 exceeds rollout_batch_size 2"),
        (["--seeds", "0"], "--seeds must be how many, 1 or more, or different numbers"),
        (["--paper_curves", "absent.json.gz"], "--paper_curves: no file absent.json.gz"),
        (["--task", "dialog"], "--task: must be one of toy, positive_generation, summarisation, dialogue"),
    ],
)
def test_a_wrong_comparison_is_refused_before_anything_heavy_is_imported(words, said):
    ((status, _, error),) = answers([["benchmarks.reward_kl", *words]])
    assert status == 2
    assert said in error


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("memory", ("--reward", "openai-community/gpt3"), "--reward 'openai-community/gpt3' is neither a folder"),
        ("memory", ("--preset", "chess"), "dialogue"),
        ("memory", ("--minibatch-size", "17"), "--minibatch_size 17 exceeds rollout_batch_size 16"),
        ("throughput", ("--cases", "[papers]"), "did you mean 'paper'?"),
        ("throughput", ("--against", "trl-0.7.4"), "then give --published_python DIR/bin/python"),
        ("sampling_speed", ("--repeats", "1"), "--repeats must be 2 or more, got 1"),
        ("levers", ("--seconds", "-1"), "--seconds must be 0 or more, got -1.0"),
        ("evidence_cost", ("--rows", "[0]"), "--rows must be 1 or more, got 0"),
        ("card", ("--cases", "[papers]"), "did you mean 'paper'?"),
        ("card", ("--published_python", "nowhere"), "install.sh DIR, then give --published_python DIR/bin/python"),
    ],
)
def test_wrong_values_are_refused_before_anything_heavy_is_imported(name, words, said):
    ((status, _, error),) = answers([[f"benchmarks.{name}", *words]])
    assert status == 2
    assert said in error


@pytest.mark.parametrize("name", ["evidence_cost", "levers", "sampling_speed", "throughput", "card"])
def test_a_folder_that_is_taken_is_refused_before_anything_heavy_is_imported(name, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    ((status, _, error),) = answers([[f"benchmarks.{name}", "--out", str(tmp_path)]])
    assert status != 0
    assert "is not empty; choose another --out" in error
