"""Every metric of a step that does not come from the update itself. docs/metrics.md in the repository says how to read
them.

A figure that is undefined for a batch (the spread of a single response, say) is left out rather than made up.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.checks import conservation_error
from rlhf_core.masking import masked_mean, masked_var
from rlhf_core.types import Experience, Rollout


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Scores before redistribution, KL in nats summed over a response, and lengths in tokens."""
    lengths = rollout.sequences.response_lengths.float()
    quantiles = lengths.quantile(torch.tensor([0.1, 0.5, 0.9], device=lengths.device)).tolist()
    figures = {
        "score": float(rollout.raw_scores.mean()),
        "kl": mean_response_kl(rollout),
        "kl_penalty": float(rollout.kl.sum(1).mean()),
        "length": float(lengths.mean()),
        "length_q10": quantiles[0],
        "length_q50": quantiles[1],
        "length_q90": quantiles[2],
        "finished": float(rollout.sequences.finished.float().mean()),
    }
    if len(lengths) > 1:
        figures["score_std"] = float(rollout.raw_scores.std())
    return figures


def mean_response_kl(rollout: Rollout) -> float:
    """k1 = log π − log π_ref, summed over a response, mean over the responses: what the KL controller is fed."""
    total = (rollout.logprobs - rollout.ref_logprobs).sum(1).sum()
    return float(total / len(rollout.sequences))


def credit_metrics(token_scores: Float[Tensor, "batch response"], rollout: Rollout) -> dict[str, float]:
    """``credit_concentration``: 1 / Σ w² with w = |token score| / Σ |token score|, the effective number of credited
    tokens, mean over responses with any credit; ``conservation_error``: see ``checks.conservation_error``."""
    size = token_scores.abs()
    totals = size.sum(1)
    some = totals > 0
    figures = {"conservation_error": conservation_error(token_scores, rollout)}
    if bool(some.any()):
        weights = size[some] / totals[some, None]
        figures["credit_concentration"] = float((1 / weights.square().sum(1)).mean())
    return figures


def critic_metrics(experience: Experience) -> dict[str, float]:
    """How well the values predicted the λ-returns, and how much there was to predict.

    ``explained_variance``: 1 − Var(R − V) / Var(R) over all tokens. ``explained_variance_over_position``:
    1 − mean((R − V)²) / within-position variance of R: 0 for a critic that knows a token's position and nothing
    else, which plain explained variance rewards under dense credit. ``explained_variance_within_position``: the same
    with the within-position variance of R − V, so that an error of the level at a position does not count: whether the
    critic tells the states of one position apart.
    """
    mask = experience.sequences.response_mask
    returns, values = experience.returns, experience.values
    errors = returns - values
    total, within = masked_var(returns, mask), within_position_variance(returns, mask)
    figures = {
        "return_mean": float(masked_mean(returns, mask)),
        "return_variance": float(total),
        "advantage_variance": float(masked_var(experience.advantages, mask)),
    }
    if total > 0:
        figures["explained_variance"] = float(1 - masked_var(errors, mask) / total)
    if within is not None:
        figures["return_variance_within_position"] = float(within)
        if within > 0:
            figures["explained_variance_over_position"] = float(1 - masked_mean(errors.square(), mask) / within)
            unexplained = within_position_variance(errors, mask)
            assert unexplained is not None  # it is None where the variance of the returns is
            figures["explained_variance_within_position"] = float(1 - unexplained / within)
    return figures


def within_position_variance(
    x: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, ""] | None:
    """Pooled unbiased variance of ``x`` around its mean at each response position.

    Σ_t Σ_i (x_it − x̄_t)² / (tokens − positions); None if no position has two tokens.
    """
    counts = mask.sum(0)
    freedom = mask.sum() - (counts > 0).sum()
    if int(freedom) == 0:
        return None
    means = torch.where(mask, x, 0).sum(0) / counts.clamp(min=1)
    return torch.where(mask, x - means, 0).square().sum() / freedom
