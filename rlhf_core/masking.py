"""Statistics over the tokens that a mask selects. Each function has one meaning and no flags.

Masked slots go through ``torch.where``, never through a product: NaN x 0 is NaN. What raises on a CPU is NaN on a card:
to look first would make the host wait for the card, at every mean.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WHITENING_EPSILON = 1e-8


def masked_mean(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Mean of ``x`` where ``mask``; raises ValueError where nothing is selected."""
    if mask.device.type == "cpu" and not bool(mask.any()):
        raise ValueError(f"masked_mean: the mask of shape {tuple(mask.shape)} selects nothing")
    return torch.where(mask, x, 0).sum() / mask.sum()


def masked_var(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Unbiased variance (ddof 1) of ``x`` where ``mask``; 0 for a single element.

    Raises:
        ValueError: nothing is selected.
        FloatingPointError: finite values whose squares are not.
    """
    _, variance = _moments(x, mask)
    return variance


def masked_whiten(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """(x − mean) · rsqrt(var + 1e-8) where ``mask``, 0 elsewhere.

    Defined for one element and for equal elements (all 0). The epsilon is TRL 0.7.4's, so that settings carry over.

    Raises:
        ValueError: nothing is selected.
        FloatingPointError: finite values whose squares are not.
    """
    mean, variance = _moments(x, mask)
    return torch.where(mask, (x - mean) * torch.rsqrt(variance + WHITENING_EPSILON), 0)


def last_token(mask: Bool[Tensor, "batch response"]) -> Bool[Tensor, "batch response"]:
    """True on the last token that ``mask`` selects in each (right-padded) row."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return mask & ~following


def _moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the selected elements."""
    count = mask.sum()
    smallest = torch.where(mask, x, torch.inf).min()
    largest = torch.where(mask, x, -torch.inf).max()
    mean = torch.where(mask, x, 0).sum() / count
    # A mean lies among its elements; rounding may put it outside, and whitening equal elements would magnify that.
    mean = mean.clamp(smallest, largest)
    squares = torch.where(mask, x - mean, 0).square().sum()
    overflow = torch.isinf(squares) & torch.isfinite(largest - smallest)
    if mask.device.type != "cpu":
        return mean, torch.where(overflow, torch.nan, squares / (count - 1).clamp(min=1))
    if int(count) == 0:
        raise ValueError(f"masked_var, masked_whiten: the mask of shape {tuple(mask.shape)} selects nothing")
    if overflow:
        raise FloatingPointError(
            f"masked_var, masked_whiten: values from {float(smallest):.3g} to {float(largest):.3g} have a variance "
            f"beyond {x.dtype}; scale them (ScoreConfig(scaling='running_std') does so for scores)"
        )
    return mean, squares / (count - 1).clamp(min=1)
