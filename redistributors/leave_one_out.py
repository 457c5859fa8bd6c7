"""Leave-one-out: a token's credit is the drop of the score when the token is removed."""

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import Residual, check_residual, evidence_of, signed, unattributed
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest, Source
from rlhf_core.probe import Ability, Absence, Experiment, Probe, Variants
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Occlusion(Experiment):
    """r(x, y) − r(x, y without a span), in equal parts on the span's tokens, spans counted from the first token; raw
    score units."""

    source: Source = "reward"
    absent: Absence = "delete"
    span: int = 1

    @property
    def uses(self) -> frozenset[Ability]:  # type: ignore[override]
        """Scores of responses without some tokens, removed or replaced."""
        return frozenset({self.absent})

    def measure(self, probe: Probe) -> Float[Tensor, "batch response"]:
        """One score a span, and that of the whole response: measured alike, in the model's own precision, where
        ``rollout.raw_scores`` has been rounded to float32 and a difference of two scores would show it."""
        mask = probe.sequences.response_mask
        span_of = torch.arange(mask.shape[1], device=mask.device) // self.span
        spans = torch.arange(-1, int(span_of[-1]) + 1, device=mask.device)  # -1: nothing is left out
        keep = (span_of != spans[:, None]).expand(len(mask), -1, -1)
        scores = probe.scores(Variants(keep=keep, absent=self.absent))
        effects = (scores[:, :1] - scores[:, 1:])[:, span_of]
        sizes = (mask[:, :, None] & (span_of[:, None] == span_of)).sum(1)
        return torch.where(mask, effects / sizes.clamp(min=1), 0)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """token_score_t = score_scale · (r(x, y) − r(x, y without token t)), and the ``residual`` where stated (Li, Monroe
    and Jurafsky 2016, "Understanding neural networks through representation erasure"; Zeiler and Fergus 2014). Of a
    ``span`` of n tokens, the last of a response maybe shorter, each token gets an equal part of the span's effect. Not
    RLOO, which leaves a response out of a baseline.

    ``absent="delete"`` removes the token and closes the gap. Every scorer can read such a text, callables too; later
    tokens move up. ``absent="replace"`` puts the reward model's null token (mask, or else padding, unknown, EOS) there:
    positions stay, but few decoders know a token that means nothing. A response within one span is compared with an
    empty one, which a callable must be able to score.

    Effects do not add up to the score: if two tokens say the same thing, removing either one changes nothing. With the
    residual, token scores sum to the score unless ``residual`` is "nowhere"; ``credit_residual`` says how large the
    residual is.

    Cost: one forward pass per span and one more, so T + 1 for T tokens at ``span=1``; no backward pass.

    Raises:
        ValueError: an unknown ``absent`` or ``residual``, or a ``span`` below 1.
    """

    absent: Absence = "delete"
    span: int = 1
    residual: Residual = "last"
    causal: ClassVar[bool] = False
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_residual(self.residual, "LeaveOneOut")
        if self.absent not in list(get_args(Absence)):
            raise ValueError(f"LeaveOneOut: absent must be one of {', '.join(get_args(Absence))}, got {self.absent!r}")
        if type(self.span) is not int or self.span < 1:
            raise ValueError(f"LeaveOneOut: span is a number of tokens, 1 or more, got {self.span!r}")

    @property
    def conserving(self) -> bool:
        """True unless the residual is left out."""
        return self.residual != "nowhere"

    @property
    def request(self) -> Occlusion:
        """The evidence this method reads."""
        return Occlusion(absent=self.absent, span=self.span)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Scores of altered responses."""
        return frozenset({self.request})

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        return signed(evidence_of(rollout, self.request, "LeaveOneOut"), rollout, residual=self.residual)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_residual``: mean of abs(score − what is attributed), score units."""
        return {"credit_residual": unattributed(evidence_of(rollout, self.request, "LeaveOneOut"), rollout)}
