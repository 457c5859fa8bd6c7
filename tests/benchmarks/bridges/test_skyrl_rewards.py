"""Rewards per token in a generator's output; field names and estimators against SkyRL's package where it is at hand."""

import ast
import importlib.util
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typing_extensions

from benchmarks.bridges.group_estimator import NAME, rloo_to_go
from benchmarks.bridges.skyrl_rewards import with_token_rewards
from redistributors import LeaveOneOut
from rlhf_core import TokenReward

SUMS = TokenReward(lambda prompts, responses: [float(sum(row)) for row in responses])
OUTPUT = {
    "prompt_token_ids": [[4, 5], [6]],
    "response_ids": [[3, 7, 2], [9]],
    "rewards": [0.0, 0.0],
    "loss_masks": [[1, 1, 1], [0]],
    "stop_reasons": ["stop", "length"],
}
SKYRL = importlib.util.find_spec("skyrl")
needs_skyrl = pytest.mark.skipif(SKYRL is None, reason="SkyRL is not installed here: benchmarks/bridges/install.sh")


def test_rewards_are_replaced_and_nothing_else():
    made = with_token_rewards(OUTPUT, SUMS, LeaveOneOut())
    assert made == {**OUTPUT, "rewards": [[3, 7, 2], [9]]}
    assert OUTPUT["rewards"] == [0.0, 0.0]


def test_tokens_that_are_not_trained_on_are_refused():
    with pytest.raises(ValueError, match="response 0 has some tokens with loss_masks 0"):
        with_token_rewards({**OUTPUT, "loss_masks": [[1, 0, 1], [1]]}, SUMS, LeaveOneOut())


@needs_skyrl
def test_the_fields_are_skyrls():
    (place,) = SKYRL.submodule_search_locations
    tree = ast.parse(Path(place, "train/generators/base.py").read_text(encoding="utf-8"))
    (output,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GeneratorOutput")
    fields = {node.target.id: ast.unparse(node.annotation) for node in output.body if isinstance(node, ast.AnnAssign)}
    assert set(OUTPUT) <= set(fields)
    assert fields["rewards"] == "Union[List[float], List[List[float]]]"


@needs_skyrl
@pytest.mark.filterwarnings("default")
def test_which_estimators_of_skyrl_lose_credit_per_token(monkeypatch):
    """The same totals on the first tokens or on the last, through the package's own dispatch."""
    monkeypatch.setattr(typing, "TypedDict", typing_extensions.TypedDict)  # pydantic wants it below Python 3.12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from skyrl.backends.skyrl_train.utils import ppo_utils
        except ModuleNotFoundError as missing:
            pytest.skip(f"SkyRL's estimators need {missing.name}, which is not installed here")
    ppo_utils.AdvantageEstimatorRegistry.register(NAME, rloo_to_go)
    first, last = torch.zeros(4, 4), torch.zeros(4, 4)
    first[:, 0] = last[:, 3] = torch.tensor([3.0, 1.0, -2.0, 0.5])

    def advantages(name, rewards):
        made, _ = ppo_utils.compute_advantages_and_returns(
            token_level_rewards=rewards.clone(),
            response_mask=torch.ones(4, 4),
            index=np.array(["a", "a", "b", "b"], dtype=object),
            adv_estimator=name,
            config=None,
            values=torch.zeros(4, 4),
        )
        return made

    lost = {
        name: advantages(name, first).allclose(advantages(name, last), atol=1e-6)
        for name in ("gae", "reinforce++", NAME, "grpo", "rloo", "maxrl")
    }
    assert lost == {"gae": False, "reinforce++": False, NAME: False, "grpo": True, "rloo": True, "maxrl": True}
