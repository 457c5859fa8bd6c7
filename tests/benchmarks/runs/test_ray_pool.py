"""Runs on a Ray cluster: the same curves, a node that dies, and how a comparison is stopped."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest
from table_task import PPO, TableTask, settings, table_loaded, threes

from benchmarks.runs.comparison import Panel, announced, plan, ppo_of
from benchmarks.runs.finished_runs import load_results
from benchmarks.runs.ray_pool import RayCluster, chosen_executor
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.worker_pool import RunFailed, run_all
from benchmarks.tasks.model_settings import Loading

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: .[cluster]")
quietly = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
TIMES = ("seconds", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class SlowTask(TableTask):
    """Its reward takes a while, and notes every call."""

    calls: str

    def load(self):
        def slow(prompts, responses):
            time.sleep(0.1)
            with open(self.calls, "a") as file:
                file.write("x")
            return threes(prompts, responses)

        return replace(table_loaded(), reward=slow)


@dataclass(frozen=True, kw_only=True)
class BrokenTask(TableTask):
    def load(self):
        raise OSError("the disk is gone")


def runs_of(place, task, **changes):
    chosen = settings(place, redistributors="sparse", **changes)
    return [replace(run, fingerprint="table") for run in plan(chosen, task, Panel(), ppo_of(TableTask(), PPO))]


def curves(runs):
    found = load_results("table", runs).curves["sparse"]
    return {name: repr(values.tolist()) for name, values in found.items() if name not in TIMES}  # NaN equals nothing


def test_the_settings_choose_it(tmp_path):
    assert chosen_executor(settings(tmp_path)) is None
    chosen = settings(tmp_path, executor="ray", ray_address="head:6379", gpus_per_run=0.5, processes=3)
    assert chosen_executor(chosen) == RayCluster(address="head:6379", cpus=3, gpus=0.5)
    runs = plan(chosen, TableTask(), Panel(), ppo_of(TableTask(), PPO))
    assert "as many at a time as the Ray cluster has room for" in announced(chosen, runs)[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ray_address": "auto"}, "are settings of a Ray cluster; add --executor ray"),
        ({"gpus_per_run": 1}, "are settings of a Ray cluster; add --executor ray"),
        ({"executor": "ray", "gpus_per_run": -1}, "gpus_per_run must be 0 or more, got -1"),
        ({"executor": "ray", "loading": Loading(device="cuda")}, "add --gpus_per_run 1"),
        ({"executor": "ray", "loading": Loading(reward_device="cuda:1")}, "add --gpus_per_run 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ComparisonSettings(**given)


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dense-rlhf\[cluster\]'"):
        run_all(runs_of(tmp_path, TableTask()), 1, RayCluster(address=None, cpus=1, gpus=0))


@pytest.fixture
def two_nodes(monkeypatch):
    """A cluster of two nodes on this machine, one CPU each; the second may be killed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # what an installed package needs not
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


@needs_ray
@quietly
@pytest.mark.slow
def test_a_killed_node_loses_only_the_steps_since_a_checkpoint(tmp_path, two_nodes):
    """One of two runs goes on elsewhere; both end as they do in this process, to the bit."""
    cluster, second = two_nodes
    asked = {"steps": 80, "eval_every": 80, "save_every": 5}
    plain = runs_of(tmp_path / "plain", SlowTask(calls=str(tmp_path / "plain-calls")), **asked)
    run_all(plain, 0)
    runs = runs_of(tmp_path / "ray", SlowTask(calls=str(tmp_path / "ray-calls")), **asked)
    killed = []

    def execute(due, progress):
        look = progress.look

        def watch():
            if not killed and all(steps(run) >= 12 for run in due):
                killed.append([steps(run) for run in due])
                cluster.remove_node(second, allow_graceful=False)
            look()

        object.__setattr__(progress, "look", watch)
        RayCluster(address=None, cpus=1, gpus=0)(due, progress)

    run_all(runs, 1, execute)
    assert killed
    assert curves(runs) == curves(plain)
    repeated = calls(tmp_path / "ray-calls") - calls(tmp_path / "plain-calls")
    assert 0 < repeated <= 5 + 3  # the steps since a checkpoint, one that was under way, measures before the first


def steps(run):
    metrics = run.folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def calls(file):
    return len(file.read_text())


@needs_ray
@quietly
@pytest.mark.slow
def test_what_fails_is_named_and_gpus_that_no_node_has_are_refused(tmp_path, two_nodes):
    with pytest.raises(RunFailed, match="sparse, seed 0 failed: the disk is gone"):
        run_all(runs_of(tmp_path, BrokenTask(), seeds=1), 1, RayCluster(address=None, cpus=1, gpus=0))
    with pytest.raises(ValueError, match="--gpus_per_run is 1, and no node of the Ray cluster has more than 0 GPUs"):
        run_all(runs_of(tmp_path, TableTask(), seeds=1), 1, RayCluster(address=None, cpus=1, gpus=1))


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from rich.console import Console
from table_task import TableTask, settings
from benchmarks.learning_curves import SCRIPT
from benchmarks.runs.worker_pool import Interrupted
chosen = settings(Path({out!r}), redistributors="sparse", steps=4000, executor="ray", processes=2)
try:
    SCRIPT.experiment().run(chosen, TableTask(), {{}}, Console())
except Interrupted as stopped:
    print("STOPPED", stopped, flush=True)
    sys.exit(130)
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_comparison_saves_its_runs(tmp_path, how):
    """As with the processes of one machine: each run in progress ends after its step, with a checkpoint."""
    file = tmp_path / "child.py"
    file.write_text(CHILD.format(paths=sys.path, out=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True, env=environment)
    folders = [tmp_path / "out/runs/sparse" / f"seed-{seed}" for seed in (0, 1)]
    deadline = time.monotonic() + 600
    while not all((folder / "metrics.jsonl").exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(how)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "0 of 2 due runs finished" in printed
    for folder in folders:
        assert list(folder.glob("checkpoint-*")), sorted(folder.iterdir())
