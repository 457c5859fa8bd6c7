"""A method with evidence of its own, added from outside the repository without changing a file in it."""

import csv
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prepared import prepared

ROOT = Path(__file__).resolve().parents[2]
ARM = "outside.windows.Windows(width=1, beta=0.5)"
METHOD = '''
"""Credit by three kinds of evidence that nobody else reads."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from redistributors.parts.credit import evidence_of, signed
from rlhf_core.evidence import AttentionTap, HiddenTap
from rlhf_core.probe import Experiment, Variants


@dataclass(frozen=True, kw_only=True)
class StrongestHead(AttentionTap):
    """The largest weight that any head of the read position puts on each response token."""

    source: str = "reward"

    def rows(self, layout):
        return layout.read_positions[:, None]

    def reduce(self, weights, rows, layout):
        strongest = weights.amax(1).sum(1)
        return torch.where(layout.response_mask, strongest.gather(1, layout.response_positions), 0)


@dataclass(frozen=True, kw_only=True)
class Turns(HiddenTap):
    """How far the score of the text so far bends before each token: its second difference."""

    def read(self, hidden, score):
        scores = torch.nn.functional.pad(score(hidden), (2, 0), mode="replicate")
        return scores[:, 2:] - 2 * scores[:, 1:-1] + scores[:, :-2]


@dataclass(frozen=True, kw_only=True)
class WindowDrop(Experiment):
    """What the score loses with a token and its neighbours up to ``width`` away."""

    source: str = "reward"
    width: int
    uses: ClassVar = frozenset({"delete"})

    def measure(self, probe):
        mask = probe.sequences.response_mask
        places = torch.arange(mask.shape[1], device=mask.device)
        outside = (places[:, None] - places).abs() > self.width
        keep = torch.cat([torch.ones_like(outside[:1]), outside]) & mask[:, None]
        scores = probe.scores(Variants(keep=keep, absent="delete"))
        return (scores[:, :1] - scores[:, 1:]).masked_fill(~mask, 0)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The drop, more of it where a head looks and the score turns; the rest of the score on the last token."""

    width: int = 1
    beta: float = 1.0
    causal: ClassVar = False
    conserving: ClassVar = True

    @property
    def needs(self):
        return frozenset({StrongestHead(), Turns(), WindowDrop(width=self.width)})

    def __call__(self, rollout):
        head, turns, drop = (evidence_of(rollout, request, "Windows") for request in (
            StrongestHead(), Turns(), WindowDrop(width=self.width)))
        return signed(self.beta * drop * (1 + head) * (1 + turns.abs().tanh()), rollout, residual="last")

    def metrics(self, rollout):
        return {"window_drop": float(evidence_of(rollout, WindowDrop(width=self.width), "Windows").abs().mean())}
'''
DRIVER = """
'''Trains with the method, then names it to two scripts.'''
import json
import sys

from benchmarks import credit_faithfulness, value_loss_variance
from models import load_policy, load_reward_model
from outside.windows import Windows
from rlhf_core import PPOConfig, PPOTrainer

if __name__ == "__main__":
    models, out, arm = sys.argv[1:]
    config = PPOConfig(rollout_batch_size=4, minibatch_size=2, epochs=1, min_length=2, max_length=(4, 8))
    reward = load_reward_model(f"{models}/reward", score="logit_difference")
    trainer = PPOTrainer(load_policy(f"{models}/policy"), reward, Windows(width=2), config)
    steps = [trainer.step([[2], [3, 4], [5], [6, 7, 8]]) for _ in range(2)]
    with open(f"{out}/steps.json", "w") as file:
        json.dump(steps, file)
    task = ["--task", "positive_generation", "--models", models]
    credit_faithfulness.main([*task, "--out", f"{out}/faithfulness", "--redistributors", f"sparse,{arm}",
                              "--responses", "4", "--points", "2", "--continuations", "2", "--absent", "[delete]"])
    value_loss_variance.SCRIPT.main([*task, "--out", f"{out}/comparison", "--redistributors", arm, "--controls", "",
                                     "--seeds", "1", "--steps", "2", "--eval_prompts", "2", "--processes", "1",
                                     "--ppo.rollout_batch_size", "4", "--ppo.epochs", "1"])
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a package that has the method, and afterwards a repository in which nothing has changed."""
    package = tmp_path / "work" / "outside"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "windows.py").write_text(METHOD)
    before = hashes()
    yield package.parent
    assert hashes() == before


def hashes():
    """SHA-256 of every file of code, settings and documents, by path."""
    places = ("rlhf_core", "redistributors", "models", "benchmarks", "tests", "docs", "tools")
    files = [path for place in places for path in (ROOT / place).rglob("*")] + list(ROOT.glob("*.*"))
    own = [path for path in files if path.is_file() and "__pycache__" not in path.parts]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in own}


def run(command, cwd, *places):
    """A fresh interpreter that finds the packages in ``places``, and, with -m, those in the folder it starts from."""
    path = os.pathsep.join(map(str, places))
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def require_results(comparison, faithfulness):
    """A run of the method that finished, figures, and a line of the faithfulness table."""
    (record,) = comparison.glob("runs/outside.windows.Windows-*/seed-0/run.json")
    assert "Windows(width=1, beta=0.5)" in json.loads(record.read_text())["settings"]["redistributor"]
    lines = [json.loads(line) for line in (record.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(line["window_drop"] > 0 and line["conservation_error"] < 1e-4 for line in lines)
    assert {path.name for path in (comparison / "figures").glob("*.png")} > {"summary.png", "reward.png"}
    with (faithfulness / "table.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    mine = rows["outside.windows.Windows-width1-beta0.5"]
    assert math.isfinite(float(mine["deletion AOPC, delete"]))
    assert float(mine["forwards"]) > 1 > float(rows["sparse"]["forwards"])
    assert (faithfulness / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_method_with_new_evidence_trains_and_is_compared_from_outside(elsewhere, tmp_path):
    """Started in the folder that holds the package, which is how its worker process finds it too."""
    (elsewhere / "outside" / "drive.py").write_text(DRIVER)
    models = prepared(tmp_path / "models")
    run(["-m", "outside.drive", models, tmp_path, ARM], elsewhere, ROOT)
    for step in json.loads((tmp_path / "steps.json").read_text()):
        assert all(map(math.isfinite, step.values()))
        assert step["window_drop"] > 0
        assert step["credit_concentration"] > 1
        assert step["conservation_error"] < 1e-5
    require_results(tmp_path / "comparison", tmp_path / "faithfulness")
