"""Training with every critic: a warm-up that leaves the policy alone, and runs that go on as if never cut short."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resumable import CONFIG, PROMPTS, left_behind

from models import LoraSettings, load_policy
from models.tiny import save_tiny
from redistributors import Sparse, Uniform
from rlhf_core import PPOTrainer, TokenReward

LORA = LoraSettings(rank=2, alpha=4)
OUT = ("whole", "parts")
CRITICS = {
    "shared": {},
    "shared, lora": {"lora": LORA},
    "adapter": {"critic": "adapter", "lora": LORA},
    "model": {"critic": "model"},
    "model, lora": {"critic": "model", "lora": LORA},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny(root / "policy", "llama", seed=1)
    save_tiny(root / "reward", "llama", head="classifier", seed=2)
    return root


def share_of_small(prompts, responses):
    """More of the first half of the vocabulary is better."""
    return [sum(token < 16 for token in row) / len(row) for row in responses]


def made(root: Path, critic: str, *, config=CONFIG, **settings) -> PPOTrainer:
    settings |= CRITICS[critic]
    if settings.get("critic") == "model":
        settings |= {"critic_model": str(root / "reward")}
    policy = load_policy(str(root / "policy"), **settings)
    return PPOTrainer(policy, TokenReward(share_of_small), Uniform(), config)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_warm_up_moves_the_critic_and_no_bit_of_the_policy(root, critic, checkpointing):
    learner = made(root, critic, config=replace(CONFIG, critic_warmup=1), gradient_checkpointing=checkpointing)
    of_critic = set(map(id, learner.policy.critic.parameters()))
    own = [one for one in learner.policy.parameters() if id(one) not in of_critic]
    before = [one.detach().clone() for one in own]
    figures = [learner.step(PROMPTS[:4] * 2) for _ in range(1)]
    assert all(torch.equal(one, kept) for one, kept in zip(own, before, strict=True))
    assert learner.policy.value_head.linear.weight.abs().sum() > 0
    assert learner.kl_controller.coef == CONFIG.kl.init_coef
    figures += [learner.step(PROMPTS[:4] * 2)]
    assert not all(torch.equal(one, kept) for one, kept in zip(own, before, strict=True))
    assert [row["critic_warmup_steps"] for row in figures] == [1, 1]
    assert figures[0]["kl"] == figures[1]["kl"] == 0  # both rollouts came before the policy moved
    for row in figures:
        assert {"value_loss", "explained_variance", "explained_variance_over_position"} <= row.keys()
        assert ("critic_gradient_norm" in row) == learner.policy.critic.apart


@pytest.mark.parametrize(
    "critic", [pytest.param(name, marks=pytest.mark.slow) for name in ("adapter", "model", "model, lora")]
)
def test_four_steps_are_two_and_two(root, tmp_path, critic):
    def fit(out: str, n: int, *, resume: bool = False) -> None:
        learner = made(root, critic, config=replace(CONFIG, critic_warmup=1))
        learner.fit(PROMPTS, n, out=tmp_path / out, eval_every=3, resume=resume)

    fit("whole", 4)
    fit("parts", 2)
    fit("parts", 4, resume=True)
    (tensors, state, records), (others, state2, records2) = (
        left_behind(tmp_path / out, 4) for out in ("whole", "parts")
    )
    assert any("critic/" in name for name in tensors)
    kind = "adapter" if critic == "adapter" else "model"
    card = (tmp_path / "parts" / "checkpoint-4" / "policy" / "README.md").read_text()
    assert f'policy = load_policy(".", critic="{kind}")' in card
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert (state, records) == (state2, records2)
    other = made(
        root, "shared, lora" if "lora" in CRITICS[critic] else "shared", config=replace(CONFIG, critic_warmup=1)
    )
    with pytest.raises(ValueError, match="cannot be used: .*optimizer"):
        other.restore(tmp_path / "whole" / "checkpoint-4")
    with pytest.raises(ValueError, match="critic"):
        other.fit(PROMPTS, 4, out=tmp_path / "whole", eval_every=3, resume=True)


def test_a_critic_of_its_own_is_refused_where_the_estimator_has_none(root):
    with pytest.raises(ValueError, match="'rloo' have no critic"):
        made(root, "model", config=replace(CONFIG, advantages="rloo", responses_per_prompt=2))


def test_sparse_credit_at_first_sees_the_same_policy_under_every_critic(root):
    """One rollout, whatever the critic: only values differ."""
    found = []
    for critic in ("shared, lora", "adapter", "model, lora"):
        learner = made(root, critic)
        learner.redistributor = Sparse()
        found.append(learner.collect(PROMPTS[:4] * 2))
    assert all(torch.equal(one.logprobs, found[0].logprobs) for one in found)
    assert all(torch.equal(one.sequences.response_ids, found[0].sequences.response_ids) for one in found)
    assert not found[1].values.any()
    assert found[2].values.any()
