"""A checkpoint is complete under its final name, or not there at all."""

import json
from dataclasses import replace

import pytest
from fakes import TablePolicy
from table_trainer import CONFIG, PROMPTS, batch, trainer

from rlhf_core import KLConfig
from rlhf_core.run.checkpoint import TrainerState, save_checkpoint


def test_the_state_of_the_kl_controller_and_the_score_moments_are_saved(tmp_path):
    learner = trainer(config=replace(CONFIG, kl=KLConfig(init_coef=0.01, target=1.0, horizon=100.0)))
    learner.fit(PROMPTS, 3, out=tmp_path / "run")
    state = json.loads((tmp_path / "run/checkpoint-3/state.json").read_text())
    # three times 16 responses, each at the largest error of -0.2: kl stays far below the target
    assert state["kl_coef"] == learner.kl_controller.coef == pytest.approx(0.01 * (1 - 0.2 * 16 / 100) ** 3)
    assert state["score_moments"]["count"] == 48
    assert state["score_moments"]["mean"] == pytest.approx(learner.score_moments.mean)


STATE = TrainerState(numbers={"steps_done": 1}, tensors={})


class Interrupted(TablePolicy):
    """Writes half of what it should, once."""

    fails = True

    def save(self, folder):
        super().save(folder)
        if self.fails:
            self.fails = False
            with open(f"{folder}/half.safetensors", "w") as file:
                file.write("half")
            raise KeyboardInterrupt


def test_an_interrupted_save_leaves_nothing_under_the_final_name_and_does_not_block_the_next(tmp_path):
    policy, folder = Interrupted(), tmp_path / "checkpoint-1"
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, policy, STATE, {})
    assert not folder.exists()
    save_checkpoint(folder, policy, STATE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert sorted(path.name for path in folder.rglob("*")) == [
        *("README.md", "manifest.json", "policy", "state.json", "table.safetensors", "trainer.safetensors")
    ]
    with pytest.raises(FileExistsError, match="checkpoint-1 exists; move it away"):
        save_checkpoint(folder, policy, STATE, {})


def test_a_state_that_is_no_json_is_no_checkpoint_either(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(
            tmp_path / "checkpoint-1", TablePolicy(), TrainerState(numbers={"kl_coef": float("nan")}, tensors={}), {}
        )
    assert not (tmp_path / "checkpoint-1").exists()


def test_a_run_whose_save_failed_can_save_later(tmp_path):
    learner = trainer(policy=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        learner.fit(PROMPTS, 1, out=tmp_path / "first")
    assert not list((tmp_path / "first").glob("checkpoint-*"))
    learner.step(batch())
    learner.fit(PROMPTS, 1, out=tmp_path / "second")
    assert (tmp_path / "second/checkpoint-3/state.json").is_file()
