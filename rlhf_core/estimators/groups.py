"""Statistics over the responses to one prompt. ``groups`` numbers the prompt of each row; groups may differ in size."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def response_totals(
    rewards: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, " batch"]:
    """Sum of each response's rewards, in score units."""
    return torch.where(mask, rewards, 0).sum(1)


def on_every_token(x: Float[Tensor, " batch"], mask: Bool[Tensor, "batch response"]) -> Float[Tensor, "batch response"]:
    """One number per response on each of its tokens, 0 on padding."""
    return torch.where(mask, x[:, None], 0)


def same_group(groups: Int[Tensor, " batch"]) -> Bool[Tensor, "batch batch"]:
    """Whether two rows answer the same prompt; a row and itself do."""
    return groups[:, None] == groups[None, :]


def other_rows(groups: Int[Tensor, " batch"], who: str) -> Bool[Tensor, "batch batch"]:
    """The other responses to each row's prompt.

    Raises:
        ValueError: a row that is the only one of its group; names ``who`` asked.
    """
    others = same_group(groups) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    alone = ~others.any(1)
    if bool(alone.any()):
        row = int(alone.nonzero()[0])
        raise ValueError(
            f"{who}: row {row} is the only response of group {int(groups[row])}, so there is no "
            "other to compare it with; give two responses a prompt or more (PPOConfig.responses_per_prompt)"
        )
    return others


def less_mean_of(x: Float[Tensor, "*batch"], rows: Bool[Tensor, "batch batch"]) -> Float[Tensor, "*batch"]:
    """x_i − mean of x_j over the rows j that ``rows[i]`` selects, along the first axis.

    Differences are taken first: a constant that all rows share then leaves no rounding behind.
    """
    gaps = x[:, None] - x[None, :]
    selected = rows.reshape(*rows.shape, *(1,) * (x.dim() - 1))
    counts = rows.sum(1).reshape(-1, *(1,) * (x.dim() - 1))
    added = torch.where(selected, gaps, 0).cumsum(1)[:, -1]  # one after the other, in whatever shape: equal to the bit
    return added / counts
