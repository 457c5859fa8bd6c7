"""A user's script under torchrun and accelerate launch, unchanged; a process that is killed, and the run after it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resumable import left_behind
from several import free_port

ROOT = Path(__file__).parents[3]
HELPERS = ROOT / "tests" / "helpers"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HELPERS}{os.pathsep}{ROOT}"}
SCRIPT = str(HELPERS / "launched.py")
pytestmark = pytest.mark.slow


def torchrun(count: int) -> list[str]:
    where = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *where]


def accelerate(count: int) -> list[str]:
    kind = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    where = ["--num_processes", str(count), "--main_process_port", str(free_port())]
    return [sys.executable, "-m", "accelerate.commands.launch", *kind, *where]


def launched(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=400
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = launched(sys.executable, SCRIPT, out, 4)
    assert done.returncode == 0, done.stderr
    return out


def require_same_end(run: Path, whole: Path, step: int) -> None:
    (tensors, *_), (due, *_) = left_behind(run, step), left_behind(whole, step)
    assert tensors.keys() == due.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, due[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_a_script_runs_unchanged_under_a_launcher(launcher, whole, tmp_path):
    done = launched(*launcher(2), SCRIPT, tmp_path / "run", 4)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("uniform: 4 steps") == 1
    require_same_end(tmp_path / "run", whole, 4)


def test_a_killed_process_ends_the_others_and_another_number_goes_on(whole, tmp_path):
    started = time.monotonic()
    killed = launched(*torchrun(2), SCRIPT, tmp_path / "run", 4, 3)
    assert killed.returncode != 0
    assert time.monotonic() - started < 60 + 60  # the start on a busy machine, and a minute at most to end
    told, ended = "another process of this run has ended", "(SIGTERM)"  # unless torchrun was quicker to end it
    assert told in killed.stderr or ended in killed.stderr
    assert "Signal 9 (SIGKILL)" in killed.stderr  # torchrun names the rank
    assert (tmp_path / "run/checkpoint-2").is_dir()
    assert not (tmp_path / "run/checkpoint-3").exists()
    done = launched(*torchrun(3), SCRIPT, tmp_path / "run", 4)
    assert done.returncode == 0, done.stderr
    require_same_end(tmp_path / "run", whole, 4)
