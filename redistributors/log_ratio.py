"""Log-ratios of a second policy to the reference: the implicit reward of a model trained by DPO or a similar method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from redistributors.parts.credit import evidence_of, fallback_fraction, normalised
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import AuxiliaryLogprobs, EvidenceRequest
from rlhf_core.masking import last_token
from rlhf_core.types import Rollout

Mode = Literal["add", "shape", "rescale"]
Ratios = Float[Tensor, "batch response"]
Scores = Float[Tensor, " batch"]
Mask = Bool[Tensor, "batch response"]


@dataclass(frozen=True, kw_only=True)
class LogRatio:
    """d_t = clip(scale · (log π_a(y_t | s_t) − log π_ref(y_t | s_t)), ± clip), π_a an auxiliary model of the policy.

    A language model trained by DPO from π_ref is the optimal policy for some token reward, and β · log-ratio is a
    shaped form of that reward (Rafailov et al. 2024, "From r to Q*"). The same holds for a reward model of that form
    trained on outcomes (Yuan et al. 2024, "Free process rewards without process labels"). ``scale`` is that training's
    β; d_t is in units of the *implicit* reward, taken to be those of the scores, and is not multiplied by
    ``score_scale``. The clip is ours: one token with probability near 0 under π_ref must not outweigh the rest of the
    response.

    ``mode``:

    - "add": d_t, and the score on the last token; sums to score + Σ d_t. RTO (Zhong et al. 2024, "DPO meets PPO:
      reinforced token optimization for RLHF"). This changes the objective: other responses are best than under the
      score alone.
    - "shape" (ours): the same, minus Σ d_t on the last token; sums to the score. That is potential-based shaping (Ng,
      Harada and Russell 1999) with Φ(s_t) = Σ_{k<t} d_k, exact at gamma 1: d_t guides, the score alone decides.
    - "rescale" (ours): score · w_t, where w_t ∝ max(d_t, 0) for a score above 0 and max(−d_t, 0) below, so that a good
      response's score goes to the tokens that π_a prefers, and a bad one's to those that it would avoid; all on the
      last token if there is none. Sums to the score; it depends on the whole response, so it is not causal.

    ``policy`` is the auxiliary's name in ``load_policy(..., auxiliaries={name: folder})``; a policy without it refuses.

    Raises:
        ValueError: no name, a scale or clip that is not above 0, an unknown mode.
    """

    policy: str = "dpo"
    scale: float = 0.1
    clip: float = 1.0
    mode: Mode = "add"
    __str__ = as_typed

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str) or not self.policy:
            raise ValueError(f"LogRatio: policy is the name of an auxiliary of the policy, got {self.policy!r}")
        for name in ("scale", "clip"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"LogRatio: {name} must be a finite number above 0, got {value!r}")
        if self.mode not in get_args(Mode):
            raise ValueError(f"LogRatio: mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")

    @property
    def request(self) -> AuxiliaryLogprobs:
        """The evidence this method reads."""
        return AuxiliaryLogprobs(name=self.policy)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Log-probabilities under the auxiliary: one forward pass of it."""
        return frozenset({self.request})

    @property
    def causal(self) -> bool:
        """True unless the score, which depends on the whole response, is spread."""
        return self.mode != "rescale"

    @property
    def shaping(self) -> bool:
        """True if the sum of log-ratios is subtracted again."""
        return self.mode == "shape"

    @property
    def conserving(self) -> bool:
        """True unless the log-ratios are added to the score."""
        return self.mode != "add"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        token_scores = MODES[self.mode](self._scaled(rollout).clamp(-self.clip, self.clip), rollout.scores, mask)
        return token_scores.to(rollout.scores.dtype).masked_fill(~mask, 0).detach()

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``log_ratio``: Σ_t d_t, mean over responses, the implicit reward in score units; ``log_ratio_clipped``: share
        of tokens at the clip. "rescale" adds ``credit_fallback``: share of responses without a log-ratio of the score's
        sign (credit: last token)."""
        mask, scaled = rollout.sequences.response_mask, self._scaled(rollout)
        ratios = scaled.clamp(-self.clip, self.clip)
        figures = {
            "log_ratio": float(ratios.sum(1).mean()),
            "log_ratio_clipped": float((scaled.abs() > self.clip)[mask].float().mean()),
        }
        if self.mode == "rescale":
            figures["credit_fallback"] = fallback_fraction(agreeing(ratios, rollout.scores), mask)
        return figures

    def _scaled(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        theirs = evidence_of(rollout, self.request, "LogRatio")
        return torch.where(rollout.sequences.response_mask, self.scale * (theirs - rollout.ref_logprobs), 0)


def added(ratios: Ratios, scores: Scores, mask: Mask) -> Float[Tensor, "batch response"]:
    """d_t + [t = T] · score."""
    return ratios + last_token(mask) * scores[:, None]


def shaping(ratios: Ratios, scores: Scores, mask: Mask) -> Float[Tensor, "batch response"]:
    """d_t + [t = T] · (score − Σ_k d_k)."""
    return added(ratios, scores - ratios.sum(1), mask)


def rescaled(ratios: Ratios, scores: Scores, mask: Mask) -> Float[Tensor, "batch response"]:
    """score · w_t with w_t ∝ max(sign(score) · d_t, 0)."""
    return scores[:, None] * normalised(agreeing(ratios, scores), mask)


def agreeing(ratios: Ratios, scores: Scores) -> Float[Tensor, "batch response"]:
    """max(sign(score) · d_t, 0)."""
    return (scores.sign()[:, None] * ratios).clamp(min=0)


MODES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"add": added, "shape": shaping, "rescale": rescaled}
