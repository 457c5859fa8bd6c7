"""What redistributors that read evidence share: weights that a score is spread over, and signed attributions."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.masking import last_token
from rlhf_core.types import Rollout

Residual = Literal["last", "uniform", "nowhere"]


def evidence_of(rollout: Rollout, request: EvidenceRequest, who: str) -> Float[Tensor, "batch ..."]:
    """What ``rollout`` holds for ``request``.

    Raises:
        ValueError: it holds nothing for it, or something of another shape than the request states.
    """
    if request not in rollout.evidence:
        raise ValueError(
            f"{who} needs {request!r}, which this rollout does not hold; collect it with a trainer whose redistributor "
            "needs it"
        )
    evidence, responses = rollout.evidence[request], rollout.sequences.response_mask.shape
    if tuple(evidence.shape) != request.shape(*responses):
        raise ValueError(f"{who}: evidence of shape {tuple(evidence.shape)} for responses of shape {tuple(responses)}")
    return evidence


def normalised(
    evidence: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Non-negative evidence as credit that sums to 1 over each response; all on the last token where it sums to 0.

    Raises:
        ValueError: evidence that is negative or not finite on a response token; dividing a signed attribution by
            its sum may flip every sign.
    """
    # at least in float32: the sum of low-precision credit would not be the score
    weights = torch.where(mask, evidence, 0).to(torch.promote_types(evidence.dtype, torch.float32))
    bad = ~torch.isfinite(weights) | (weights < 0)
    if bool(bad.any()):
        row, token = bad.nonzero()[0].tolist()
        raise ValueError(
            f"credit: evidence must be finite and non-negative, got {float(weights[row, token])} at row {row}, "
            f"token {token}; a signed attribution is not normalised by its sum"
        )
    # Divided by the maximum first: evidence as small as 1e-40 must not lose its shape, or its sum, to underflow.
    weights = weights / weights.amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    totals = weights.sum(1, keepdim=True)
    fallback = last_token(mask).to(weights.dtype)
    return torch.where(totals > 0, weights / torch.where(totals > 0, totals, 1), fallback)


def spread(
    scores: Float[Tensor, " batch"],
    credit: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    beta: float,
) -> Float[Tensor, "batch response"]:
    """beta · credit_t · score + (1 − beta) · [t = T] · score (paper, eq. 8); sums to the score for every beta."""
    weights = beta * credit + (1 - beta) * last_token(mask)
    return torch.where(mask & (weights != 0), weights * scores[:, None], 0).detach()


def signed(
    attributions: Float[Tensor, "batch response"], rollout: Rollout, *, residual: Residual
) -> Float[Tensor, "batch response"]:
    """Attributions in raw score units as token scores: times the score's scale, never divided by their sum.

    What they leave of the score (its baseline, centring, clipping, what an approximation misses) goes to the "last"
    token, in equal parts to all ("uniform"), or "nowhere"; only then is the sum not the score.
    """
    mask = rollout.sequences.response_mask
    token_scores = torch.where(mask, attributions * rollout.score_scale, 0).to(rollout.scores.dtype)
    left = (rollout.scores - token_scores.sum(1))[:, None]
    equal = mask / mask.sum(1, keepdim=True)
    shares = {"last": last_token(mask).to(equal), "uniform": equal, "nowhere": torch.zeros_like(equal)}
    return (token_scores + left * shares[residual]).detach()


def check_residual(residual: object, who: str) -> None:
    """Raise ValueError for what is no place for a residual."""
    if residual not in list(get_args(Residual)):
        raise ValueError(f"{who}: residual must be one of {', '.join(get_args(Residual))}, got {residual!r}")


def fallback_fraction(evidence: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]) -> float:
    """Share of responses whose evidence is 0 everywhere, so that the last token got all credit."""
    return float((torch.where(mask, evidence, 0).sum(1) == 0).float().mean())


def check_beta(beta: object, who: str) -> None:
    """Raise ValueError for what is no share, a number in [0, 1]."""
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
        raise ValueError(f"{who}: beta is the share of the score that follows credit, a number in [0, 1], got {beta!r}")


def check_layer(layer: object, who: str) -> None:
    """Raise ValueError for what is no layer's number; whether the model has the layer is the model's to say."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"{who}: layer is an attention layer's number, negative from the last, got {layer!r}")
