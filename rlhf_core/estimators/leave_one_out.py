"""RLOO, and its dense form, in which credit reaches the token."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, where

from rlhf_core.estimators.groups import less_mean_of, on_every_token, other_rows, response_totals
from rlhf_core.returns import discounted_returns


def leave_one_out_advantages(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "batch response"]:
    """RLOO: A_i = R_i − 1/(k − 1) · Σ_{j ≠ i} R_j over the k responses of one group, R_i = Σ_t r_it, in score units.

    r are the ``rewards`` of the tokens that ``mask`` selects. The same on every token of a response, 0 on padding, not
    whitened; it adds up to 0 over a group. ``groups`` numbers the prompt of each row; groups may differ in size. Only
    totals count: where credit is placed within a response changes nothing, nor does a constant that all responses to a
    prompt share, such as the one true shaping adds. Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline
    for free!"; Ahmadian et al. 2024, "Back to basics", arXiv 2402.14740, eq. 8.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    totals = response_totals(rewards, mask)
    return on_every_token(less_mean_of(totals, other_rows(groups, "leave_one_out_advantages")), mask)


def leave_one_out_to_go(
    rewards: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    groups: Int[Tensor, " batch"],
    *,
    gamma: float,
) -> Float[Tensor, "batch response"]:
    """A_it = G_it − 1/(k − 1) · Σ_{j ≠ i} G_jt: a token's reward-to-go, less the mean of the others' at its position.

    G_it = Σ_{s ≥ t} γ^{s−t} r_is; a response that has ended counts as 0. Score units, 0 on padding, not whitened. The
    baseline of row i depends on the other responses only, never on its own tokens, so the policy gradient stays
    unbiased wherever the credit leaves it so. With all rewards on the last token, γ = 1 and responses of one length it
    equals :func:`leave_one_out_advantages` to the bit.
    Source: the baseline of Kool et al. 2019 on the reward-to-go of Sutton and Barto 2018, eq. 3.9.

    Raises:
        ValueError: a row that is the only one of its group.
    """
    to_go = discounted_returns(rewards, mask, gamma=gamma)
    return where(mask, less_mean_of(to_go, other_rows(groups, "leave_one_out_to_go")), 0)
