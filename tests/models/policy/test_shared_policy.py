"""Two trainers on one policy: each measures what it would measure alone."""

from dataclasses import replace

import pytest
import torch
from fakes import TablePolicy, small_run

from models import load_policy
from models.tiny import save_tiny
from redistributors import DecoderAttention, Sparse
from rlhf_core import PPOTrainer, TokenReward
from rlhf_core.config import KLConfig

PROMPTS = [[2], [3], [4], [5]]
COLD, WARM = 0.4, 1.5


def trainer(policy, temperature, **changes):
    reward = TokenReward(lambda prompts, rows: [float(len(row)) for row in rows])
    return PPOTrainer(policy, reward, Sparse(), replace(small_run(), temperature=temperature, **changes))


def numbers(rollout):
    """Everything that a temperature decides."""
    return [x.tolist() for x in (rollout.sequences.response_ids, rollout.logprobs, rollout.ref_logprobs, rollout.kl)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("shared"), "llama")


@pytest.mark.parametrize("kind", ["k1", "full"])
def test_the_second_trainers_temperature_is_not_the_firsts(folder, kind):
    settings = {"kl": KLConfig(init_coef=0.05, kind=kind)}
    alone = [numbers(trainer(load_policy(folder), t, **settings).collect(PROMPTS)) for t in (COLD, WARM)]
    assert alone[0] != alone[1]
    policy = load_policy(folder)
    cold, warm = (trainer(policy, t, **settings) for t in (COLD, WARM))
    assert [numbers(each.collect(PROMPTS)) for each in (warm, cold, warm)] == [alone[1], alone[0], alone[1]]
    assert (policy.temperature, cold.policy.temperature, warm.policy.temperature) == (1.0, COLD, WARM)


def test_interleaved_steps_keep_the_ratio_at_one_and_train_one_policy(folder):
    policy = load_policy(folder)
    cold, warm = trainer(policy, COLD, first_step_checks="warn"), trainer(policy, WARM, first_step_checks="warn")
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    first = cold.step(PROMPTS)
    with pytest.warns(RuntimeWarning, match="policy and reference differ"):  # cold has trained it
        warm.collect(PROMPTS)
    second = cold.step(PROMPTS)
    assert first["first_log_ratio_max"] < 1e-5
    assert second["first_log_ratio_max"] < 1e-5
    ours, theirs, given = (tuple(each.parameters()) for each in (cold.policy, warm.policy, policy))
    assert all(a is b is c for a, b, c in zip(ours, theirs, given, strict=True))
    assert any(not torch.equal(was, now) for was, now in zip(before, given, strict=True))


def test_any_policy_is_copied_with_its_weights():
    policy = TablePolicy()
    cold, warm = trainer(policy, COLD), trainer(policy, WARM)
    assert cold.policy.logits is warm.policy.logits is policy.logits
    alone = numbers(trainer(TablePolicy(), COLD).collect(PROMPTS))
    assert numbers(cold.collect(PROMPTS)) == alone


def test_what_was_found_out_about_attention_is_shared(folder, monkeypatch):
    from models.attention import reader as module

    policy = load_policy(folder)
    cold, warm = trainer(policy, COLD), trainer(policy, WARM)
    request = DecoderAttention().request
    assert cold.policy.provides(request)
    monkeypatch.setattr(module, "AttentionReader", None)
    assert warm.policy.provides(request)
    assert policy.provides(request)
