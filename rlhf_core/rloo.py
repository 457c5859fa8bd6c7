"""Advantages without a critic: a response against the other responses to its prompt."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def leave_one_out_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """RLOO: A_i = R_i − 1/(k − 1) · Σ_{j ≠ i} R_j over the k responses of one group, R_i = Σ_t r_it, in score units.

    The same on every token of a response, 0 on padding, not whitened; it adds up to 0 over a group. ``groups`` numbers
    the prompt of each row; groups may differ in size. Only totals count: where credit is placed within a response
    changes nothing, nor does a constant that all responses to a prompt share, such as the one true shaping adds.
    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024, "Back to
    basics", arXiv 2402.14740, eq. 8.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    totals = torch.where(mask, rewards, 0).sum(1)
    others = (groups[:, None] == groups[None, :]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    counts = others.sum(1)
    if bool((counts == 0).any()):
        row = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"leave_one_out_advantages: row {row} is the only response of group {int(groups[row])}, so there is no "
            "other to compare it with; give two responses a prompt or more (PPOConfig.responses_per_prompt)"
        )
    # differences first: a constant that all totals share then leaves no rounding behind
    gaps = totals[:, None] - totals[None, :]
    advantages = torch.where(others, gaps, 0).sum(1) / counts
    return torch.where(mask, advantages[:, None], 0)
