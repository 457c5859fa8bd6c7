"""The dense group estimator, ``rloo_to_go``, in the form that verl's and SkyRL's registries take."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlhf_core.estimators.leave_one_out import leave_one_out_to_go
from rlhf_core.masking import masked_whiten
from rlhf_core.returns import discounted_returns

NAME = "rloo_to_go"


@torch.no_grad()
def rloo_to_go(
    token_level_rewards: Float[Tensor, "batch response"],
    response_mask: Shaped[Tensor, "batch response"],
    index: Sequence[Any] | np.ndarray,
    config: Any = None,
    gamma: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch response"], Float[Tensor, "batch response"]]:
    """Advantages and returns per token: the reward-to-go, less the mean of the group's others at the same position.

    As :func:`rlhf_core.estimators.leave_one_out.leave_one_out_to_go`, then whitened over the tokens of the batch.
    ``index`` names the prompt of each row. ``gamma`` is SkyRL's argument; verl has it in ``config``. Rows without a
    token, with which verl fills up a batch, get 0 and count in no group. ``others`` are not used.

    Raises:
        ValueError: a prompt with one response only.
    """
    discount = float(config.gamma) if gamma is None else gamma
    mask = response_mask.bool()
    rows = mask.any(1)
    groups = torch.from_numpy(np.unique(np.asarray(index, dtype=str), return_inverse=True)[1]).to(mask.device)
    _require_others(groups[rows])
    advantages = torch.zeros_like(token_level_rewards)
    dense = leave_one_out_to_go(token_level_rewards[rows], mask[rows], groups[rows], gamma=discount)
    advantages[rows] = masked_whiten(dense, mask[rows])
    return advantages, discounted_returns(token_level_rewards, mask, gamma=discount)


def _require_others(groups: Tensor) -> None:
    """In the words of the trainers that call it, which have no PPOConfig."""
    counts = torch.bincount(groups)
    if bool((counts == 1).any()):
        raise ValueError(
            f"{NAME} compares the responses to one prompt, and {int((counts == 1).sum())} prompts of this batch have "
            "one response only; sample two or more (verl: actor_rollout_ref.rollout.n, SkyRL: "
            "generator.n_samples_per_prompt)"
        )
