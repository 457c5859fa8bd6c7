"""The reward manager for verl without verl: what it needs of a batch, of a reward function and of a configuration."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from benchmarks.bridges.group_estimator import rloo_to_go
from benchmarks.bridges.verl_rewards import TokenRewardManager, credited_rewards
from models import save_tiny
from rlhf_core.estimators.leave_one_out import leave_one_out_to_go
from rlhf_core.masking import masked_whiten


def numbers(prompt_ids, response_ids):
    return [[float(token) for token in row] for row in response_ids]


def config(estimator="gae", enable=True, pool=False, path="pkg://mine", n=2):
    model = SimpleNamespace(enable=enable, enable_resource_pool=pool)
    return SimpleNamespace(
        reward=SimpleNamespace(reward_model=model, custom_reward_function=SimpleNamespace(path=path)),
        algorithm=SimpleNamespace(adv_estimator=estimator),
        actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(n=n)),
    )


class Data:
    """As much of verl's DataProto as a manager reads."""

    def __init__(self, **batch):
        self.batch = batch

    def __getitem__(self, rows):
        return Data(**{name: tensor[rows] for name, tensor in self.batch.items()})


def batch():
    """Prompts (4), (5, 6), responses (7, 8, 9), (1)."""
    return Data(
        prompts=torch.tensor([[0, 4], [5, 6]]),
        responses=torch.tensor([[7, 8, 9], [1, 0, 0]]),
        attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    )


def asked(manager, data):
    async def both():
        return await asyncio.gather(*(manager.run_single(data[row : row + 1]) for row in range(2)))

    return [answer["reward_score"] for answer in asyncio.run(both())]


def test_responses_of_a_batch_are_scored_together_and_come_back_to_their_rows():
    called = []

    def reward(prompt_ids, response_ids):
        called.append((list(prompt_ids), list(response_ids)))
        return numbers(prompt_ids, response_ids)

    manager = TokenRewardManager(config(), None, reward, reward_router_address=None)
    scores = asked(manager, batch())
    assert called == [([[4], [5, 6]], [[7, 8, 9], [1]])]
    assert scores == [[7, 8, 9], [1]]
    assert TokenRewardManager.assemble_rm_scores(batch(), scores).tolist() == [[7, 8, 9], [1, 0, 0]]


def test_an_error_of_the_reward_reaches_every_response():
    def reward(prompt_ids, response_ids):
        raise OSError("no model there")

    with pytest.raises(OSError, match="no model there"):
        asked(TokenRewardManager(config(), None, reward), batch())


@pytest.mark.parametrize("given", [[[7.0, 8.0], [1.0]], [24.0, 1.0]], ids=["too few", "one score"])
def test_rewards_must_fit_the_tokens(given):
    with pytest.raises(ValueError, match="response 0 has 3 tokens, and the reward function gave"):
        TokenRewardManager.assemble_rm_scores(batch(), given)


def test_tokens_of_a_tool_are_refused():
    data = batch()
    data.batch["response_mask"] = torch.tensor([[1, 0, 1], [1, 0, 0]])
    with pytest.raises(ValueError, match="responses of a single turn"):
        TokenRewardManager.assemble_rm_scores(data, [[7.0, 8.0, 9.0], [1.0]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable": False}, "puts each reward on the last token without asking"),
        ({"pool": True}, "puts each reward on the last token without asking"),
        ({"path": None}, "custom_reward_function.path is not set"),
        ({"estimator": "rloo_to_go", "n": 1}, "rollout.n is 1; set it to 2 or more"),
    ],
)
def test_configurations_that_would_lose_credit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TokenRewardManager(config(**changes), None, numbers)


def test_an_estimator_of_totals_is_warned_of():
    with pytest.warns(UserWarning, match="adv_estimator rloo adds up .* Use rloo_to_go"):
        TokenRewardManager(config(estimator="rloo"), None, numbers)


def test_a_named_model_is_loaded_once_and_a_method_that_needs_a_policy_is_refused(tmp_path, monkeypatch):
    model = save_tiny(tmp_path / "reward", "gpt2", head="classifier", padding="own")
    rewards = credited_rewards([[4], [5, 6]], [[7, 8, 9], [1]], model=model, method="uniform", beta=1.0)
    assert [len(set(row)) for row in rewards] == [1, 1]
    monkeypatch.setattr("benchmarks.bridges.verl_rewards.load_reward_model", None)
    assert credited_rewards([[4]], [[7, 8, 9]], model=model, method="uniform", beta=1.0) == rewards[:1]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="of the policy, and no policy takes part"):
        credited_rewards([[4]], [[7]], model=model, method="abc-d")


def test_the_group_estimator_is_the_engines():
    """Groups by name, a gamma from either trainer, and rows without a token, which count nowhere."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 4, generator=generator)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 1, 0])[:, None]
    index, groups = ["b", "a", "b", "a", "c"], torch.tensor([1, 0, 1, 0])
    expected = masked_whiten(leave_one_out_to_go(rewards[:4], mask[:4], groups, gamma=0.9), mask[:4])
    of_skyrl, returns = rloo_to_go(rewards, mask.float(), index, gamma=0.9, values=None, lambd=1.0)
    of_verl, _ = rloo_to_go(rewards, mask.long(), index, config=SimpleNamespace(gamma=0.9))
    assert of_skyrl[:4].equal(expected)
    assert of_verl.equal(of_skyrl)
    assert not of_skyrl[4].any()
    assert returns[3].tolist() == [float(rewards[3, 0]), 0, 0, 0]
    with pytest.raises(ValueError, match=r"1 prompts of this batch have one response only; sample .*rollout\.n"):
        rloo_to_go(rewards[:3], mask[:3], index[:3], gamma=1.0)  # a has one, b two
