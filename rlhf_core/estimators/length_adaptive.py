"""GAE's λ from the length of each response (VAPO)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def length_adaptive_lam(mask: Bool[Tensor, "batch response"], *, share: float) -> Float[Tensor, " batch"]:
    """λ_i = 1 − 1 / (share · l_i), l the length in tokens, and 0 where that is negative.

    GAE's weights, powers of λ, then add up to about share · l: the same share of every response.
    Source: Yue et al. 2025, "VAPO", arXiv 2504.05118, section 4.2 (there α, 0.05).
    """
    lengths = mask.sum(1).to(torch.float64)
    return (1 - 1 / (share * lengths)).clamp(min=0)
