"""Building blocks of a method: read evidence, and turn it into token scores in one of three ways.

``spread`` divides the score by weights, which ``normalised`` makes of evidence that is not negative; ``signed`` takes
attributions of either sign, in raw score units; ``shaped`` takes a potential of the state before each token. All
tensors are (batch, response), 0 on padding; token scores are in the units of ``rollout.scores``.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.masking import last_token
from rlhf_core.types import Redistributor, Rollout

Residual = Literal["last", "uniform", "nowhere"]
"""Where the part of a score goes that attributions leave over."""


def evidence_of(rollout: Rollout, request: EvidenceRequest, who: str) -> Float[Tensor, "batch ..."]:
    """The evidence of ``rollout`` for ``request``, in the shape and units that the request states. ``who`` is the
    method, for the error message.

    Raises:
        ValueError: it holds nothing for it, or something of another shape than the request states.
    """
    if request not in rollout.evidence:
        raise ValueError(
            f"{who} needs {request!r}, which this rollout does not hold; collect one that does: "
            "trainer.collect(prompts, methods=[...])"
        )
    evidence, responses = rollout.evidence[request], rollout.sequences.response_mask.shape
    if tuple(evidence.shape) != request.shape(*responses):
        raise ValueError(f"{who}: evidence of shape {tuple(evidence.shape)} for responses of shape {tuple(responses)}")
    return evidence


def restricted(rollout: Rollout, redistributor: Redistributor) -> Rollout:
    """The rollout with only the evidence that the redistributor asks for, as far as the rollout has it."""
    own = {request: found for request, found in rollout.evidence.items() if request in redistributor.needs}
    return replace(rollout, evidence=own)


def normalised(
    evidence: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Non-negative ``evidence``, in any unit, as credit that sums to 1 over the tokens of each response, which ``mask``
    selects; all on the last token where the evidence is 0.

    Raises:
        ValueError: evidence that is negative or not finite on a response token.
    """
    weights = as_weights(evidence, mask)
    # Divided by the maximum first: evidence as small as 1e-40 must not lose its shape, or its sum, to underflow.
    weights = weights / weights.amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    totals = weights.sum(1, keepdim=True)
    fallback = last_token(mask).to(weights.dtype)
    return torch.where(totals > 0, weights / torch.where(totals > 0, totals, 1), fallback)


def as_weights(
    evidence: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Non-negative evidence in float32 at least, 0 on padding.

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
    return weights


def spread(
    scores: Float[Tensor, " batch"],
    credit: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    beta: float,
) -> Float[Tensor, "batch response"]:
    """beta · credit_t · score + (1 − beta) · [t = T] · score (paper, eq. 8), without gradient: token scores in the
    units of ``scores``, 0 where ``mask`` is False. They sum to the score for every ``beta`` in [0, 1] where ``credit``
    sums to 1, as :func:`normalised` makes it."""
    weights = beta * credit + (1 - beta) * last_token(mask).to(credit.dtype)
    return torch.where(mask & (weights != 0), weights * scores[:, None], 0).detach()


def signed(
    attributions: Float[Tensor, "batch response"], rollout: Rollout, *, residual: Residual
) -> Float[Tensor, "batch response"]:
    """``attributions`` in raw score units as token scores: times ``rollout.score_scale``, never divided by their sum,
    without gradient.

    The rest of the score (its baseline, centring, clipping, the error of an approximation) is the ``residual``: it goes
    to the "last" token, in equal parts to all ("uniform"), or "nowhere". Only with "nowhere" does the sum differ from
    the score.
    """
    mask = rollout.sequences.response_mask
    token_scores = torch.where(mask, attributions * rollout.score_scale, 0).to(rollout.scores.dtype)
    left = (rollout.scores - token_scores.sum(1))[:, None]
    equal = mask / mask.sum(1, keepdim=True)
    shares = {"last": last_token(mask).to(equal), "uniform": equal, "nowhere": torch.zeros_like(equal)}
    return (token_scores + left * shares[residual]).detach()


def shaped(
    potential: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], *, gamma: float
) -> Float[Tensor, "batch response"]:
    """γ Φ(s_{t+1}) − Φ(s_t) with Φ = 0 after the last token (Ng, Harada and Russell 1999): shaping, once the score is
    added on the last token. ``potential`` is Φ(s_t) of the state before token t, which must know neither that token
    nor later ones, in any unit, which is that of the answer; ``mask`` selects the response tokens, ``gamma`` is γ."""
    known = torch.where(mask, potential, 0)
    return gamma * torch.nn.functional.pad(known[:, 1:], (0, 1)) - known


def unattributed(attributions: Float[Tensor, "batch response"], rollout: Rollout) -> float:
    """Mean over the responses of ``rollout`` of abs(score − Σ attributions · scale), score units: what the residual
    holds."""
    return float((rollout.scores - signed(attributions, rollout, residual="nowhere").sum(1)).abs().mean())


def check_residual(residual: object, who: str) -> None:
    """Raise ValueError unless ``residual`` is a known place."""
    if residual not in list(get_args(Residual)):
        raise ValueError(f"{who}: residual must be one of {', '.join(get_args(Residual))}, got {residual!r}")


def fallback_fraction(evidence: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]) -> float:
    """Share of responses whose ``evidence`` is 0 wherever ``mask`` is True, so that the last token got all credit."""
    return float((torch.where(mask, evidence, 0).sum(1) == 0).float().mean())


def check_beta(beta: object, who: str) -> None:
    """Raise ValueError unless ``beta`` is a number in [0, 1]."""
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
        raise ValueError(f"{who}: beta is the share of the score that follows credit, a number in [0, 1], got {beta!r}")


def check_layer(layer: object, who: str) -> None:
    """Raise ValueError unless ``layer`` is a whole number; the model itself checks whether it has the layer."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"{who}: layer is an attention layer's number, negative from the last, got {layer!r}")


def check_discount(gamma: object, who: str) -> None:
    """Raise ValueError unless ``gamma`` is a number in [0, 1]."""
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma <= 1:
        raise ValueError(f"{who}: gamma is a discount in [0, 1], got {gamma!r}")


def check_inner(inner: object, who: str) -> None:
    """Raise ValueError unless ``inner`` is a redistributor that is not made for a discount."""
    if isinstance(inner, type) or not isinstance(inner, Redistributor):
        raise ValueError(f"{who}: inner must be a redistributor, such as RewardAttention(), got {inner!r}")
    if getattr(inner, "gamma", 1) != 1:
        raise ValueError(f"{who}: its sums are undiscounted; give inner gamma=1, got {inner}")
