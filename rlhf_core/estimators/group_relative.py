"""GRPO and its kin: a response's total against those of its own group."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.estimators.groups import less_mean_of, on_every_token, other_rows, response_totals, same_group

DEVIATION_EPSILON = 1e-6
"""Added to a group's standard deviation, as in verl and SkyRL (TRL: 1e-4, OpenRLHF: 1e-9)."""


def group_centred_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """Dr. GRPO: A_i = R_i − mean of the group's totals, in score units, the same on every token, 0 on padding.

    (k − 1)/k times RLOO. Also REINFORCE++-baseline before its advantages are whitened over the batch.
    Source: Liu et al. 2025, "Understanding R1-Zero-like training", arXiv 2503.20783; Hu et al. 2025, "REINFORCE++",
    arXiv 2501.03262.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    other_rows(groups, "group_centred_advantages")
    return on_every_token(less_mean_of(response_totals(rewards, mask), same_group(groups)), mask)


def group_normalised_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """GRPO: A_i = (R_i − mean) / (std + 1e-6) over the group's totals, the same on every token, 0 on padding.

    The standard deviation is unbiased (ddof 1). Dividing by it weights prompts by how alike their responses are, which
    biases the gradient of the mean score. A group of equal totals gets 0.
    Source: Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, section 4.1.2; verl 0.9.1's convention of ddof and 1e-6.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    other_rows(groups, "group_normalised_advantages")
    group = same_group(groups)
    centred = less_mean_of(response_totals(rewards, mask), group)
    squares = torch.where(group, centred.square()[None, :], 0).sum(1)
    deviation = (squares / (group.sum(1) - 1)).sqrt()
    return on_every_token(centred / (deviation + DEVIATION_EPSILON), mask)
