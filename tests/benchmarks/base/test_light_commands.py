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
COMMANDS = ("env",)
"""Modules below ``benchmarks`` that are light: a command that becomes light is added here."""
SETTINGS = (
    *("rlhf_core", "redistributors", "models", "rlhf_core.config", "models.weights.lora_settings"),
    *("models.weights.dtype_names", "models.training.settings", "models.rewards.score_names"),
    *("benchmarks.tasks.model_settings", "benchmarks.tasks.training_recipes", "benchmarks.base.command_line"),
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
    return done, {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_imported_without_anything_heavy(name):
    code = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    _, modules = imported(code)
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
