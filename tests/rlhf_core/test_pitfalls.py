"""Silent bugs that lie between the modules; docs/reliability.md lists all of them, with the test that holds each."""

from typing import Any

import pytest
import torch

from models import LoraSettings, load_policy, load_reward_model
from models.attention import taps as attention_taps
from models.passes import sampling
from models.tiny import save_tiny
from redistributors import DecoderAttention, RewardAttention
from rlhf_core import PPOConfig, PPOTrainer, TokenReward


@pytest.mark.parametrize("method", [DecoderAttention(), RewardAttention()])
def test_attention_is_held_against_the_models_own_before_any_of_it_is_used(method, tmp_path, monkeypatch):
    policy = load_policy(save_tiny(tmp_path / "policy", "llama"))
    reward = load_reward_model(save_tiny(tmp_path / "reward", "llama", head="classifier"), score="single_logit")
    honest = attention_taps.Projections

    def off(**fields: Any) -> Any:
        return honest(**fields | {"scaling": fields["scaling"] * 1.01, "log_totals": None})

    monkeypatch.setattr(attention_taps, "Projections", off)
    with pytest.raises(ValueError, match="attention weights of layer 0 differ from its own eager attention"):
        PPOTrainer(policy, reward, method, PPOConfig())


def test_old_logprobs_are_the_updates_own_and_not_the_samplers(tmp_path, monkeypatch):
    """The pass with a cache may round otherwise, as it is made to here; a ratio must not start from its numbers."""
    policy = load_policy(save_tiny(tmp_path, "llama"), lora=LoraSettings(rank=4))
    samplers, draw = [], sampling.inverse_cdf

    def noted(logprobs, uniforms):
        tokens = draw(logprobs, uniforms)
        samplers.append(logprobs.gather(1, tokens[:, None])[:, 0])
        return tokens

    exact = sampling.CachedDecoder.advance
    monkeypatch.setattr(sampling, "inverse_cdf", noted)
    monkeypatch.setattr(sampling.CachedDecoder, "advance", lambda self, tokens: exact(self, tokens) * 0.9)
    config = PPOConfig(min_length=8, max_length=(8, 8), rollout_batch_size=8, minibatch_size=8)
    learner = PPOTrainer(policy, TokenReward(lambda prompts, rows: [0.0] * 8), DecoderAttention(), config)
    rollout = learner.collect([[2 + row, 5] for row in range(8)])
    again = policy.evaluate(rollout.sequences, frozenset())  # with gradients, as the update does
    assert torch.equal(rollout.logprobs, again.logprobs)
    assert (torch.stack(samplers, 1) - rollout.logprobs).abs().max() > 1e-3
