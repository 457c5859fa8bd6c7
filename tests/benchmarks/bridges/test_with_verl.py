"""The bridge in verl's own hands: its configuration, its reward worker, its estimators. benchmarks/bridges/install.sh
makes the environment; without verl these tests are skipped."""

import asyncio
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bridges.verl_rewards import OF_TOTALS, TokenRewardManager
from models import load_reward_model, save_tiny
from redistributors import REDISTRIBUTORS
from rlhf_core import token_rewards

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hydra import compose, initialize_config_dir
        from tensordict import TensorDict
        from verl import DataProto
        from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
        from verl.trainer.ppo import core_algos
        from verl.trainer.ppo.ray_trainer import compute_advantage
        from verl.trainer.ppo.reward import resolve_reward_manager_cls
except ModuleNotFoundError as missing:
    pytest.skip(
        f"verl 0.9.1 is not installed here ({missing.name}): benchmarks/bridges/install.sh", allow_module_level=True
    )

pytestmark = pytest.mark.filterwarnings("default")  # what verl and its dependencies warn of is theirs
PAGE = (Path(__file__).resolve().parents[3] / "docs/howto/other_trainers.md").read_text(encoding="utf-8")
PROMPTS, RESPONSES = [[4, 5], [4, 5], [6, 7, 8], [6, 7, 8]], [[3, 7, 2], [9], [5, 6, 7, 8], [2, 2]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": save_tiny(folder / "policy", "gpt2", padding="own"),
        "reward": save_tiny(folder / "reward", "gpt2", head="classifier", padding="own"),
    }


@pytest.fixture
def configured(models, tmp_path):
    """The page's YAML on top of verl's own configuration, as verl's command reads it."""
    (pasted,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "credit.yaml").write_text(pasted.replace("my-reward", models["reward"]))

    def config(*changes):
        searched = "hydra.searchpath=[pkg://verl.trainer.config]"
        with initialize_config_dir(str(tmp_path), version_base=None):
            return compose("credit", overrides=[searched, f"actor_rollout_ref.model.path={models['policy']}", *changes])

    return config


def batch(side):
    """A batch as verl pads it: prompts on the left in its older trainer, on the right in its newer one."""
    prompt, response = max(map(len, PROMPTS)), max(map(len, RESPONSES))
    prompts, responses = torch.zeros(4, prompt, dtype=torch.long), torch.zeros(4, response, dtype=torch.long)
    before, after = torch.zeros_like(prompts), torch.zeros_like(responses)
    for row, (asked, said) in enumerate(zip(PROMPTS, RESPONSES)):
        place = slice(prompt - len(asked), None) if side == "left" else slice(0, len(asked))
        prompts[row, place], before[row, place] = torch.tensor(asked), 1
        responses[row, : len(said)], after[row, : len(said)] = torch.tensor(said), 1
    columns = {"prompts": prompts, "responses": responses, "attention_mask": torch.cat([before, after], 1)}
    return DataProto(
        batch=TensorDict(columns, batch_size=4),
        non_tensor_batch={"uid": np.array(["a", "a", "b", "b"], dtype=object)},
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_verls_worker_and_manager_put_every_reward_on_its_token(configured, models, side):
    config, data = configured(), batch(side)
    outputs = asyncio.run(scored(config, data))
    manager = resolve_reward_manager_cls(config)
    assert manager is TokenRewardManager
    rewards = manager.assemble_rm_scores(data, [output["reward_score"] for output in outputs])
    expected = token_rewards(load_reward_model(models["reward"]), REDISTRIBUTORS["abc"](), PROMPTS, RESPONSES)
    assert [row[: len(said)].tolist() for row, said in zip(rewards, RESPONSES)] == expected
    assert rewards.count_nonzero() == sum(map(len, RESPONSES))
    assert [output["reward_extra_info"]["score"] for output in outputs] == [sum(row) for row in expected]


async def scored(config, data):
    worker = RewardLoopWorker(config)
    return await worker.compute_score_batch(data)


def test_the_group_estimator_is_registered_and_called_by_verl(configured):
    config, data = configured(), batch("left")
    rewards = torch.zeros(4, 4)
    rewards[0, 0], rewards[1, 0] = 3.0, 1.0  # group a differs at the first token only
    rewards[2, 3], rewards[3, 1] = 2.0, 2.0
    mask = data.batch["attention_mask"][:, 3:]
    data.batch["token_level_rewards"], data.batch["response_mask"] = rewards, mask
    done = compute_advantage(data, "rloo_to_go", gamma=1.0, lam=1.0, num_repeat=2, config=config.algorithm)
    advantages, tokens = done.batch["advantages"], mask.bool()
    assert advantages[tokens].mean() == pytest.approx(0, abs=1e-6)
    assert advantages[tokens].var() == pytest.approx(1, abs=1e-4)
    assert not advantages[~tokens].any()
    before = torch.tensor([[2, 0, 0, 0], [-2, 0, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]]) - 0.4  # the tokens' mean
    assert torch.allclose(advantages[tokens] * before[tokens].std(), before[tokens], atol=1e-4)
    assert done.batch["returns"][2].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("name", sorted(core_algos.ADV_ESTIMATOR_REGISTRY))
def test_which_estimators_of_verl_lose_credit_per_token(name, configured):
    """The same totals, placed on the first tokens or on the last: an estimator that adds up sees no difference."""
    first, last = torch.zeros(4, 4), torch.zeros(4, 4)
    totals = torch.tensor([3.0, 1.0, -2.0, 0.5])
    first[:, 0], last[:, 3] = totals, totals
    made = [advantages_of(name, rewards, configured().algorithm) for rewards in (first, last)]
    assert made[0].allclose(made[1], atol=1e-6) == (name in OF_TOTALS)


def advantages_of(name, rewards, config):
    given = {
        "token_level_rewards": rewards.clone(),
        "response_mask": torch.ones(4, 4),
        "index": np.array(["a", "a", "b", "b"], dtype=object),
        "config": config,
    }
    of_values = {"values": torch.zeros(4, 4), "gamma": 1.0, "lam": 1.0}
    of_tokens = {"old_log_probs": torch.full((4, 4), -1.0), "sum_pi_squared": torch.full((4, 4), 0.4)}
    extra = {
        "gae": of_values,
        "remax": {"reward_baselines": torch.ones(4)},
        "optimal_token_baseline": of_tokens,
        "tir_optimal_token_baseline": of_tokens,
    }.get(name, {})
    if name == "gae":
        given = {key: value for key, value in given.items() if key not in ("index", "config")}
    if name == "gdpo":
        given["config"] = None  # else it asks for rewards of several kinds
    advantages, _ = core_algos.get_adv_estimator_fn(name)(**given, **extra)
    return advantages


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("reward.reward_model.enable=false", "puts each reward on the last token"),
        ("reward.reward_model.enable_resource_pool=true", "puts each reward on the last token"),
        ("reward.custom_reward_function.path=null", "is not set: verl then asks its own server"),
        ("actor_rollout_ref.rollout.n=1", "actor_rollout_ref.rollout.n is 1; set it to 2 or more"),
    ],
)
def test_configurations_that_would_lose_credit_are_refused(configured, change, said):
    with pytest.raises(ValueError, match=said):
        asyncio.run(scored(configured(change), batch("left")))


def test_an_estimator_of_totals_is_warned_of(configured):
    with pytest.warns(UserWarning, match="adv_estimator grpo adds up the rewards .* Use rloo_to_go"):
        asyncio.run(scored(configured("algorithm.adv_estimator=grpo"), batch("left")))
