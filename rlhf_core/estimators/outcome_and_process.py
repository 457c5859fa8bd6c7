"""PRIME: an outcome of the whole response beside rewards of its tokens, each with a leave-one-out baseline."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, where

from rlhf_core.estimators.groups import less_mean_of, on_every_token, other_rows, response_totals
from rlhf_core.returns import discounted_returns


def outcome_and_process_advantages(
    outcomes: Float[Tensor, " batch"],
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
    *,
    gamma: float,
) -> Float[Tensor, "batch response"]:
    """A_it = Σ_{s ≥ t} γ^{s−t} (r_is − b_i) + o_i − mean_{j ≠ i} o_j, with b_i = mean_{j ≠ i} of r_j averaged over its
    tokens.

    Score units, 0 on padding, not whitened. Both baselines come from the other responses only.
    Source: Cui et al. 2025, "Process reinforcement through implicit rewards", arXiv 2502.01456, eq. 5.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    others = other_rows(groups, "outcome_and_process_advantages")
    per_token = response_totals(rewards, mask) / mask.sum(1)
    baseline = per_token - less_mean_of(per_token, others)
    process = discounted_returns(rewards - baseline[:, None], mask, gamma=gamma)
    return where(mask, process + on_every_token(less_mean_of(outcomes, others), mask), 0)
