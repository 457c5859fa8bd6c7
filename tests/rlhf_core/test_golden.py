"""A fixed-seed training curve of the engine as it was before it was made fast: making it faster must not move it.

The learning rate is small: at 1e-3, Adam makes of a rounding error in a gradient near 0 a step of full size, and within
a few hundred of those a token is drawn differently.
"""

import json
from pathlib import Path

import pytest
from often import fast

from models import load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import REDISTRIBUTORS
from rlhf_core import PPOConfig, PPOTrainer

RECORDED = json.loads(Path(__file__).with_name("golden.json").read_text())
GOLDEN = RECORDED["curves"]


@pytest.mark.parametrize("name", fast(("gpt2 sparse 1", "llama abc-d 16"), GOLDEN))
def test_four_steps_give_the_losses_of_the_recorded_engine(name, tmp_path):
    family, method, minibatch_size = name.split()
    policy = load_policy(save_tiny(str(tmp_path / "policy"), family=family, seed=1))
    reward = load_reward_model(
        save_tiny(str(tmp_path / "reward"), family=family, head="classifier", num_labels=2, seed=2),
        score="logit_difference",
    )
    config = PPOConfig.from_paper(
        "positive_generation", seed=3, learning_rate=RECORDED["learning_rate"], minibatch_size=int(minibatch_size)
    )
    trainer = PPOTrainer(policy, reward, REDISTRIBUTORS[method](), config)
    steps = [trainer.step(["w2 w3", "w4", "w5 w6 w7", "w8 w9"] * 4) for _ in range(4)]
    found = {figure: [step[figure] for step in steps] for figure in GOLDEN[name]}
    for figure, curve in GOLDEN[name].items():
        assert found[figure] == pytest.approx(curve, rel=1e-3, abs=1e-5), figure
