"""Progress bars of the libraries are for a terminal, and only while something is loaded."""

import sys

import pytest
from transformers import PreTrainedModel
from transformers.utils import logging

from models import load_policy, load_reward_model
from models.tiny import save_tiny
from models.training import supervised
from redistributors import RewardAttention
from rlhf_core import PPOConfig, PPOTrainer

CONFIG = PPOConfig(rollout_batch_size=2, minibatch_size=1, max_length=(4, 4))


@pytest.fixture
def bars():
    logging.enable_progress_bar()
    yield
    logging.disable_progress_bar()


@pytest.mark.parametrize("watched", [False, True])
def test_loading_draws_a_bar_on_a_terminal_only(tmp_path, monkeypatch, capsys, bars, watched):
    folder = save_tiny(tmp_path, "llama", hidden_size=16, n_layers=1)
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched, raising=False)
    load_policy(folder)
    assert ("Loading weights" in capsys.readouterr().err) == watched
    assert logging.is_progress_bar_enabled()


def test_saving_draws_no_bar(tmp_path, monkeypatch, capsys, bars):
    """Not even on a terminal: a run saves in the middle of its own progress."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    folder = save_tiny(tmp_path / "tiny", "llama", hidden_size=16, n_layers=1)
    policy = load_policy(folder, critic="model", critic_model=folder)
    capsys.readouterr()
    (tmp_path / "saved").mkdir()
    policy.save(str(tmp_path / "saved"))
    supervised.save(policy.language_model, policy.tokenizer, tmp_path / "trained")
    save_tiny(tmp_path / "again", "llama", hidden_size=16, n_layers=1)
    assert capsys.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_pass_warns_of_a_missing_mask(tmp_path, monkeypatch, family):
    """transformers does where a row begins or ends with the pad token, as responses do that end with EOS."""
    asked = []
    monkeypatch.setattr(
        PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda _, ids, mask: asked.append(mask)
    )
    policy = load_policy(save_tiny(tmp_path / "policy", family, padding="eos"))
    reward = load_reward_model(save_tiny(tmp_path / "reward", family, head="classifier", padding="eos"))
    trainer = PPOTrainer(policy, reward, RewardAttention(), CONFIG)
    trainer.step(["w2 w3", "w4"])
    assert all(mask is not None for mask in asked)
    assert bool(asked) == (family == "gpt2")
