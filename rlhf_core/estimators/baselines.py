"""Further baselines: the response of greedy decoding (ReMax), and the group's mean weighted by length (OPO)."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, where

from rlhf_core.estimators.groups import on_every_token, other_rows, response_totals, same_group
from rlhf_core.returns import discounted_returns


def greedy_baseline_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    greedy_scores: Float[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """ReMax: A_it = Σ_{s ≥ t} r_is − b_i, with b_i the score of the greedy response to the same prompt.

    Score units, 0 on padding, not whitened. The baseline does not depend on the sampled response, so it adds no bias.
    It is the baseline of a whole response: under dense credit, tokens late in a response have less left to earn and are
    measured against the same number, which costs variance and no bias.
    Source: Li et al. 2024, "ReMax", arXiv 2310.10505, eq. 8.
    """
    return where(mask, discounted_returns(rewards, mask, gamma=1.0) - greedy_scores[:, None], 0)


def length_weighted_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """OPO: A_i = R_i − Σ_j l_j R_j / Σ_j l_j over the group, l the length in tokens; the same on every token.

    The baseline of least variance where a token's squared score is the same everywhere. Score units, 0 on padding. Row
    i's own total is in its baseline, so the gradient is scaled by a factor that depends on lengths: biased but for
    equal lengths, where it is (k − 1)/k times RLOO.
    Source: Hao et al. 2025, "On-policy RL with optimal reward baseline", arXiv 2505.23585, eq. 8.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    other_rows(groups, "length_weighted_advantages")
    totals, lengths = response_totals(rewards, mask), mask.sum(1).to(rewards.dtype)
    weights = where(same_group(groups), lengths[None, :], 0)
    gaps = totals[:, None] - totals[None, :]  # differences first, as in less_mean_of
    return on_every_token((weights * gaps).sum(1) / weights.sum(1), mask)
