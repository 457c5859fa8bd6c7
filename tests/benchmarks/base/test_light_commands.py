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
    *("evidence_cost", "levers", "memory", "sampling_speed", "throughput"),
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
CALL = """
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(code, *words):
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    (modules,) = (line for line in done.stderr.splitlines() if line.startswith("["))  # what ends it may come after
    return done, {name.split(".")[0] for name in json.loads(modules)}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_imported_without_anything_heavy(name):
    code = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    _, modules = imported(code)
    assert HEAVY & modules == set()


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["evn"]], ids=" ".join)
def test_the_list_of_commands_imports_nothing_heavy(words):
    _, modules = imported(CALL, "benchmarks", *words)
    assert HEAVY & modules == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_typo_import_nothing_heavy(name):
    helped, modules = imported(CALL, f"benchmarks.{name}", "--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith(f"usage: python -m benchmarks.{name}")
    assert HEAVY & modules == set()
    mistyped, modules = imported(CALL, f"benchmarks.{name}", "--no-such-flag", "3")
    assert mistyped.returncode == 2
    assert mistyped.stderr.startswith(f"python -m benchmarks.{name}: error: --no_such_flag")
    assert HEAVY & modules == set()


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
    done, modules = imported(CALL, f"benchmarks.{name}", *values)
    assert done.returncode == 2
    assert said in done.stderr
    assert HEAVY & modules == set()


@pytest.mark.parametrize("task", ["positive_generation", "summarisation", "dialogue"])
def test_a_preparation_is_refused_before_anything_heavy_is_imported(task, tmp_path):
    data = {"positive_generation": "--data"}.get(task, "--comparisons")
    wrong = {
        (task, "--no_such"): f"benchmarks.prepare {task}: error: --no_such",
        (task, "--out", str(tmp_path / "out"), data, "absent.jsonl"): "error: no file absent.jsonl",
        (task[:-1],): f"error: no task '{task[:-1]}'; did you mean '{task}'?",
        (task, "--out", "o", data, "x", "--size", "huge"): "--size: must be one of micro, tiny, small, gpt2",
    }
    for words, said in wrong.items():
        done, modules = imported(CALL, "benchmarks.prepare", *words)
        assert done.returncode == 2
        assert said in done.stderr
        assert HEAVY & modules == set()
    for words in (["--help"], [task, "--help"]):
        done, modules = imported(CALL, "benchmarks.prepare", *words)
        assert done.stdout.startswith("usage: python -m benchmarks.prepare")
        assert HEAVY & modules == set()


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
    done, modules = imported(CALL, "benchmarks.reward_kl", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert HEAVY & modules == set()


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
    ],
)
def test_wrong_values_are_refused_before_anything_heavy_is_imported(name, words, said):
    refused, modules = imported(CALL, f"benchmarks.{name}", *words)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert HEAVY & modules == set()


@pytest.mark.parametrize("name", ["evidence_cost", "levers", "sampling_speed", "throughput"])
def test_a_folder_that_is_taken_is_refused_before_anything_heavy_is_imported(name, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused, modules = imported(CALL, f"benchmarks.{name}", "--out", str(tmp_path))
    assert refused.returncode != 0
    assert "is not empty; choose another --out" in refused.stderr
    assert HEAVY & modules == set()
