"""Rewards per token for SkyRL: in the output of a generator, before SkyRL's trainer reads it.

SkyRL's estimators grpo, rloo and maxrl add up a response's rewards first; gae and reinforce++ keep them on their
tokens, and so does ``benchmarks.bridges.group_estimator.rloo_to_go``, once it is registered with SkyRL's
``AdvantageEstimatorRegistry``.
"""

from collections.abc import Mapping
from typing import Any

from rlhf_core.reward_per_token import token_rewards
from rlhf_core.types import Redistributor, RewardModel


def with_token_rewards(
    output: Mapping[str, Any], reward_model: RewardModel, redistributor: Redistributor
) -> dict[str, Any]:
    """A generator's ``output`` (SkyRL's ``GeneratorOutput``) with ``rewards`` per token in the place of its own.

    It reads ``prompt_token_ids`` and ``response_ids``, lists of token ids of the reward model's tokenizer; all other
    fields stay as they are.

    Raises:
        ValueError: a response of which some tokens are not trained on (``loss_masks`` 0), so that their credit would be
            lost; what :func:`rlhf_core.token_rewards` refuses.
    """
    for row, mask in enumerate(output["loss_masks"]):
        if any(mask) and not all(mask):  # none at all: SkyRL leaves out the whole response
            raise ValueError(
                f"with_token_rewards: response {row} has some tokens with loss_masks 0, and credit on them would be "
                "lost; it serves responses of a single turn"
            )
    rewards = token_rewards(reward_model, redistributor, output["prompt_token_ids"], output["response_ids"])
    return {**output, "rewards": rewards}
