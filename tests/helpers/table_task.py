"""A task without models: its policy is a table."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fakes import TablePolicy
from matplotlib.figure import Figure

from benchmarks.runs import worker_pool as runner
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.tasks.loaded import Loaded
from benchmarks.tasks.model_settings import Loading

PPO = {"rollout_batch_size": 4, "minibatch_size": 2, "epochs": 1, "min_length": 1, "max_length": [3, 6]}


def threes(prompts, responses):
    """The share of tokens that are 3."""
    return [response.split().count("3") / len(response.split()) for response in responses]


def table_loaded():
    """A policy on six tokens whose true contributions are known."""
    return Loaded(
        policy=TablePolicy(),
        reward=threes,
        train_prompts=[[i % 5 + 1] for i in range(8)],
        held_out_prompts=[[1], [2, 3], [4]],
        gold=lambda sequences: [float(row.count(3)) for row in sequences.responses()],
        contributions=lambda sequences: [[float(token == 3) for token in row] for row in sequences.responses()],
        fingerprint="table",
    )


@dataclass(frozen=True, kw_only=True)
class TableTask:
    name: str = "table"
    ppo = PPO
    loading = Loading()

    def load(self):
        return table_loaded()


def settings(tmp_path, **changes):
    base = ComparisonSettings(
        out=str(tmp_path / "out"),
        redistributors="sparse,uniform",
        controls="",
        seeds=2,
        steps=2,
        eval_every=1,
        eval_prompts=3,
    )
    return replace(base, **changes)


@pytest.fixture
def in_threads(monkeypatch):
    """Runs in threads of this process: starting another one takes seconds."""

    def pool(processes, *, mp_context, initializer, initargs):
        return ThreadPoolExecutor(1)  # runs redirect their output, which threads would share

    monkeypatch.setattr(runner, "ProcessPoolExecutor", pool)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not drawn: drawing takes most of a script's time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: Path(path).touch())
