"""First-order leave-one-out: the score's gradient times the difference between a token's embedding and a baseline."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import Residual, check_residual, evidence_of, signed, unattributed
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest, Source
from rlhf_core.probe import Ability, Baseline, Experiment, Probe
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class EmbeddingGradient(Experiment):
    """⟨∂r/∂e_t, e_t − e'_t⟩ at the response as it is; raw score units."""

    source: Source = "reward"
    baseline: Baseline = "null"

    @property
    def uses(self) -> frozenset[Ability]:  # type: ignore[override]
        """Gradients, and for "null" a null token."""
        return baseline_uses(self.baseline)

    def measure(self, probe: Probe) -> Float[Tensor, "batch response"]:
        """One forward and one backward pass."""
        return probe.embedding_gradients(1.0, self.baseline).contributions


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """token_score_t = score_scale · ⟨∂r/∂e_t, e_t − e'_t⟩, and the ``residual`` where stated: what r would lose without
    token t, were it linear; the first-order term of leave-one-out (Li, Chen, Hovy and Jurafsky 2016, "Visualizing and
    understanding neural models in NLP"; Shrikumar et al. 2016, "Not just a black box").

    e'_t is the embedding of the reward model's null token (mask, or else padding, unknown, EOS), or "zero", which makes
    it gradient × input. The prompt is not touched. Sums to the score unless ``residual`` is "nowhere". Where r is far
    from linear, the attributions may differ much from the score: watch ``credit_residual``.

    Cost: one forward and one backward pass, with respect to input embeddings only; no weight gets a gradient, so the
    reward model may be quantised.

    Raises:
        ValueError: an unknown ``baseline`` or ``residual``.
    """

    baseline: Baseline = "null"
    residual: Residual = "last"
    causal: ClassVar[bool] = False
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_baseline(self.baseline, "Gradient")
        check_residual(self.residual, "Gradient")

    @property
    def conserving(self) -> bool:
        """True unless the residual is left out."""
        return self.residual != "nowhere"

    @property
    def request(self) -> EmbeddingGradient:
        """The evidence this method reads."""
        return EmbeddingGradient(baseline=self.baseline)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """One pass with gradient through the reward model."""
        return frozenset({self.request})

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        return signed(evidence_of(rollout, self.request, "Gradient"), rollout, residual=self.residual)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_residual``: mean of abs(score − what is attributed), score units."""
        return {"credit_residual": unattributed(evidence_of(rollout, self.request, "Gradient"), rollout)}


def baseline_uses(baseline: Baseline) -> frozenset[Ability]:
    """What a probe must be able to do to answer gradients on the path from a baseline."""
    return frozenset({"embedding_gradients", "replace"} if baseline == "null" else {"embedding_gradients"})


def check_baseline(baseline: object, who: str) -> None:
    """Raise ValueError unless ``baseline`` is a known baseline."""
    if baseline not in list(get_args(Baseline)):
        raise ValueError(f"{who}: baseline must be one of {', '.join(get_args(Baseline))}, got {baseline!r}")
