"""A long run neither grows nor slows down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.tiny import save_tiny

LONG = """
import json, os, resource, sys
import torch
from models import load_policy, load_reward_model
from redistributors import RewardAttention
from rlhf_core import PPOConfig, PPOTrainer

torch.set_num_threads(1)
folder = sys.argv[1]
page = resource.getpagesize()
COUNTED = [*range(200, 300), *range(1900, 2000)]


class Watch:
    def __init__(self):
        self.rows, self.calls = [], 0

    def log(self, step, metrics):
        sys.setprofile(None)
        resident = int(open("/proc/self/statm").read().split()[1]) * page
        self.rows.append((self.calls, resident, len(os.listdir("/proc/self/fd"))))
        self.calls = 0
        sys.setprofile(self.count if step in COUNTED else None)  # the steps that follow

    def count(self, frame, event, argument):
        self.calls += event in ("call", "c_call")

    def close(self):
        pass


watch = Watch()
config = PPOConfig(rollout_batch_size=2, minibatch_size=2, epochs=1, min_length=1, max_length=(3, 5))
policy = load_policy(folder + "/policy")
reward = load_reward_model(folder + "/reward", score="single_logit")
trainer = PPOTrainer(policy, reward, RewardAttention(), config, [watch])
trainer.fit(["w2 w3", "w4", "w5 w6 w7"], 2000, out=folder + "/run", eval_every=50, save_every=100, keep=2)
print(json.dumps(watch.rows))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own count of memory and files")
def test_two_thousand_updates_neither_grow_nor_slow_down(tmp_path):
    save_tiny(str(tmp_path / "policy"), family="gpt2")
    save_tiny(str(tmp_path / "reward"), family="gpt2", head="classifier", num_labels=1)
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    calls, resident, files = np.array(json.loads(done.stdout)).T
    assert len(calls) == 2000
    steps = np.arange(200, 2000)
    slope, start = np.polyfit(steps, resident[200:], 1)
    assert slope * len(steps) / (start + slope * 200) < 0.02
    assert files[199] == files[-1] == files[199:].max()
    early, late = np.median(calls[200:300]), np.median(calls[1900:])  # work, in calls: a clock would time the machine
    assert 0 < late < 1.1 * early
