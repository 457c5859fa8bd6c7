"""The published stack's mistakes do what they are said to do, and nothing else."""

import pytest
import torch

from benchmarks.runs.samplers import SAMPLERS
from models import load_policy
from models.tiny import save_tiny
from redistributors import Sparse
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.types import Limits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_tiny(tmp_path_factory.mktemp(family), family, std=0.2) for family in ("gpt2", "llama")}


def draw(policy, seed=0, rows=16, low=4):
    limits = Limits(min_lengths=torch.full((rows,), low), max_lengths=torch.full((rows,), 10))
    uniforms = torch.rand(rows, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return policy.sample([[2 + i % 8, 5] for i in range(rows)], limits, uniforms)


@torch.no_grad()
def test_unrestricted_logprobs_miss_the_mass_of_eos_and_nothing_else(folders):
    policy = load_policy(folders["gpt2"])
    ours, theirs = draw(policy), draw(SAMPLERS["unrestricted-logprobs"](policy))
    assert ours.response_ids.equal(theirs.response_ids)
    restricted = policy.evaluate(ours, frozenset()).logprobs
    unrestricted = policy.evaluate(theirs, frozenset()).logprobs
    gap = restricted - unrestricted  # -log(1 - p(EOS)) where EOS was banned
    assert (gap[:, :4] > 0).all()
    assert (gap[:, 4:] == 0).all()


def test_dropout_changes_what_is_drawn_after_the_first_update_and_repeats(folders):
    policy = load_policy(folders["gpt2"])
    dropping = SAMPLERS["dropout"](policy)
    plain = draw(policy)
    assert draw(dropping).response_ids.equal(plain.response_ids)
    with torch.no_grad():
        policy.value_head.linear.bias += 1.0
    first = draw(dropping)
    assert first.response_ids.shape != plain.response_ids.shape or not first.response_ids.equal(plain.response_ids)
    assert first.response_ids.equal(draw(dropping).response_ids)
    assert draw(policy).response_ids.equal(plain.response_ids)  # nothing is left behind


def test_under_dropout_copies_of_a_prompt_share_no_noise(folders):
    policy = load_policy(folders["gpt2"])
    with torch.no_grad():
        policy.value_head.linear.bias += 1.0
    limits = Limits(min_lengths=torch.ones(24, dtype=torch.long), max_lengths=torch.ones(24, dtype=torch.long))
    alike = torch.full((24, 1), 0.5, dtype=torch.float64)
    plain, dropped = (sampler.sample([[3, 5]] * 24, limits, alike) for sampler in (policy, SAMPLERS["dropout"](policy)))
    assert len(plain.response_ids.unique()) == 1
    assert len(dropped.response_ids.unique()) > 1


def test_dropout_needs_modules_to_act_on(folders):
    policy = load_policy(folders["llama"])
    with torch.no_grad():
        policy.value_head.linear.bias += 1.0
    with pytest.raises(ValueError, match="has no dropout modules"):
        draw(SAMPLERS["dropout"](policy))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_trained_with(folders, sampler):
    policy = SAMPLERS[sampler](load_policy(folders["gpt2"]))
    config = PPOConfig(rollout_batch_size=4, minibatch_size=2, min_length=2, max_length=(4, 8), temperature=0.9)
    learner = PPOTrainer(policy, TokenReward(lambda prompts, rows: [float(len(row)) for row in rows]), Sparse(), config)
    figures = [learner.step([[2], [3], [4], [5]]) for _ in range(2)]
    assert figures[0]["first_log_ratio_max"] < 1e-5
