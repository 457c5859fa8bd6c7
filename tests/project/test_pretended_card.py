"""Every test that needs a card is run on a pretended one, in a process of its own that begins with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
REAL_ONLY = (  # of models as large as the paper's, or with kernels that only a card has
    "tests/benchmarks/cost/test_memory.py::test_prediction_and_measurement_agree_on_a_card",
    "tests/benchmarks/cost/test_memory.py::test_the_whole_command_on_a_card",
    "tests/project/test_card.py::test_a_graph_draws_the_same_tokens",
    # whose new tensors are then filled with NaN, which a pretended card's kernels meet
    "tests/rlhf_core/run/test_resume.py::test_on_a_card_too_under_deterministic_algorithms",
)


def run_on_a_pretended_card(which: str) -> None:
    """Run the tests that are marked ``gpu`` and ``which`` says; fail with their output."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    files.remove(Path(__file__))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (HELPERS / "carded", HELPERS, ROOT))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-m", f"gpu and {which}", "--tb", "short", "-p", "no:cacheprovider"]
    command += ["-W", "ignore:Module already imported"]  # by what looks for a card, before pytest comes to it
    command += ["-W", "ignore:'pin_memory' argument"]  # of a card that is not there
    command += ["-k", "not (steps_on_a_gpu and llama)"]  # one family of models is enough to see mixed devices
    left_out = [word for test in REAL_ONLY for word in ("--deselect", test)]
    done = subprocess.run(
        [*command, *left_out, *map(str, files)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout, "these tests need a card, and there was one"


@pytest.mark.slow
def test_what_needs_a_card_runs_on_a_pretended_one():
    run_on_a_pretended_card("not slow")


@pytest.mark.slow
def test_what_needs_a_card_and_takes_long_runs_on_a_pretended_one():
    run_on_a_pretended_card("slow")
