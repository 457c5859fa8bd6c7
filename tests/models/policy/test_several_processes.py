"""Whole models, adapters and 4-bit weights, trained by several processes as by one."""

from typing import Any

import pytest
import torch
from several import in_processes

from models import LoraSettings, load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import REDISTRIBUTORS
from rlhf_core import PPOConfig, PPOTrainer

LORA = LoraSettings(rank=2, alpha=4)
PROMPTS = [[4 + (3 * row) % 20, *range(5, 5 + row)] for row in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    reward = save_tiny(root / "reward", family="llama", head="classifier", num_labels=2, seed=2)
    return {"policy": save_tiny(root / "policy", family="llama", seed=1), "reward": reward}


def trained(folders: dict[str, str], loading: dict[str, Any], settings: dict[str, Any]) -> list[torch.Tensor]:
    config = PPOConfig(
        **{"rollout_batch_size": 6, "minibatch_size": 4, "epochs": 2, "learning_rate": 1e-3, **settings},
        max_length=(3, 9),
        micro_batch_tokens=40,
    )
    policy = load_policy(folders["policy"], **loading)
    reward = load_reward_model(folders["reward"], score="logit_difference")
    trainer = PPOTrainer(policy, reward, REDISTRIBUTORS["abc"](), config)
    for _ in range(5):
        trainer.step(PROMPTS[: config.rollout_batch_size // config.responses_per_prompt])
    return [parameter.detach().clone() for parameter in policy.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loading", "settings", "count"),
    [
        pytest.param({}, {}, 2, id="full"),
        pytest.param({"lora": LORA}, {"advantages": "rloo_to_go", "responses_per_prompt": 2}, 3, id="lora"),
        pytest.param({"lora": LORA, "four_bit": True}, {}, 2, id="four-bit"),
        pytest.param({"lora": LORA, "critic": "adapter"}, {"critic_warmup": 2}, 2, id="critic"),
    ],
)
def test_several_processes_train_what_one_would(loading, settings, count, folders):
    parts = in_processes(count, lambda: trained(folders, loading, settings), timeout=400)
    assert all(isinstance(part, list) for part in parts), parts
    for part in parts[1:]:
        assert all(torch.equal(one, other) for one, other in zip(part, parts[0], strict=True))
    for one, other in zip(parts[0], trained(folders, loading, settings), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
