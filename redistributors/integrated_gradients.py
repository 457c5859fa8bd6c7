"""Integrated gradients: the score's gradient along the straight path from a baseline to the response."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from redistributors.gradient import baseline_uses, check_baseline
from redistributors.parts.credit import Residual, check_residual, evidence_of, signed, unattributed
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest, Source
from rlhf_core.probe import Ability, Baseline, Experiment, Probe, Variants
from rlhf_core.types import Rollout

Rule = Literal["gauss", "midpoint"]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def gauss_legendre(steps: int) -> Points:
    """Points in (0, 1) and weights that sum to 1, exact for polynomials of degree 2 · steps − 1."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (points + 1) / 2, weights / 2


def midpoints(steps: int) -> Points:
    """The middles of equal parts of (0, 1), equally weighted."""
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)


RULES: Mapping[Rule, Callable[[int], Points]] = {"gauss": gauss_legendre, "midpoint": midpoints}


@dataclass(frozen=True, kw_only=True)
class BaselineScores(Experiment):
    """r(x, baseline): the score with the baseline in place of every response token; (batch,), raw score units."""

    source: Source = "reward"
    baseline: Baseline = "null"

    @property
    def uses(self) -> frozenset[Ability]:  # type: ignore[override]
        """What a point on the path takes."""
        return baseline_uses(self.baseline)

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """One number per response."""
        return (batch,)

    def measure(self, probe: Probe) -> Float[Tensor, " batch"]:
        """The path's first point."""
        return probe.embedding_gradients(0.0, self.baseline).scores


@dataclass(frozen=True, kw_only=True)
class PathIntegral(Experiment):
    """∫₀¹ ⟨∂r/∂e_t, e_t − e'_t⟩ dα at e' + α (e − e'), to a tolerance; raw score units.

    Each row keeps the sum of the first number of points (``steps``, twice that, and so on up to ``max_steps``) at which
    its own completeness gap is within ``tolerance``, so that no row depends on its neighbours.
    """

    source: Source = "reward"
    baseline: Baseline = "null"
    rule: Rule = "gauss"
    steps: int = 8
    tolerance: float = 0.01
    max_steps: int = 128

    @property
    def uses(self) -> frozenset[Ability]:  # type: ignore[override]
        """What a point on the path takes; the score of the response as it is counts as one without no token."""
        return baseline_uses(self.baseline) | {"delete"}

    def measure(self, probe: Probe) -> Float[Tensor, "batch response"]:
        """One forward and backward pass per point and row, one more for the baseline, and one forward for r(x, y)."""
        whole = torch.ones_like(probe.sequences.response_mask)[:, None]
        scores = probe.scores(Variants(keep=whole, absent="delete"))[:, 0]
        difference = scores - BaselineScores(baseline=self.baseline).measure(probe)
        steps, found = self.steps, self.integral(probe, self.steps)
        while 2 * steps <= self.max_steps:
            rows = (~complete(found, difference, self.tolerance)).nonzero()[:, 0]
            if not len(rows):
                break
            steps *= 2
            finer = self.integral(probe.select(rows), steps)
            found[rows, : finer.shape[1]] = finer
        return found

    def integral(self, probe: Probe, steps: int) -> Float[Tensor, "batch response"]:
        """The rule's weighted sum of contributions over so many points."""
        points = zip(*RULES[self.rule](steps), strict=True)
        return torch.stack(
            [w * probe.embedding_gradients(float(a), self.baseline).contributions for a, w in points]
        ).sum(0)


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """token_score_t = score_scale · ∫₀¹ ⟨∂r/∂e_t, e_t − e'_t⟩ dα at e' + α (e − e'), and the ``residual`` where stated
    (Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks").

    Complete: attributions sum to r(x, y) − r(x, baseline), up to the error of the sum over points. The ``baseline`` is
    the embedding of the reward model's null token (mask, or else padding, unknown, EOS), or "zero", in the place of
    every response token; prompt and positions stay. The residual is then r(x, baseline) and what centring and clipping
    change; token scores sum to the score unless it is left out ("nowhere").

    Points and weights follow ``rule``: Gauss–Legendre, which smooth scores need fewest points of, or midpoints. A row
    whose gap exceeds ``tolerance`` · max(1, abs(r(x, y) − r(x, baseline))) at ``steps`` points is done again at twice
    as many, and so on up to ``max_steps``; there it stops, and ``completeness_gap`` says how far off it is. A model in
    half precision or 4-bit cannot reach a tolerance below the rounding of its scores.

    Cost of a row: as many forward and backward passes as points, its earlier attempts included (8, or 8 + 16, ...),
    three more forwards and two more backwards for r(x, y) and, once for the sum and once to report it, the baseline.

    Raises:
        ValueError: an unknown ``baseline``, ``rule`` or ``residual``; a ``tolerance`` that is not positive; ``steps``
            below 1, or ``max_steps`` below ``steps``.
    """

    baseline: Baseline = "null"
    rule: Rule = "gauss"
    steps: int = 8
    tolerance: float = 0.01
    max_steps: int = 128
    residual: Residual = "last"
    causal: ClassVar[bool] = False
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_baseline(self.baseline, "IntegratedGradients")
        check_residual(self.residual, "IntegratedGradients")
        if self.rule not in list(RULES):
            raise ValueError(f"IntegratedGradients: rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        for name, least in (("steps", 1), ("max_steps", self.steps)):
            number = getattr(self, name)
            if type(number) is not int or number < least:
                raise ValueError(f"IntegratedGradients: {name} is a number of points, {least} or more, got {number!r}")
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float) or not self.tolerance > 0:
            raise ValueError(f"IntegratedGradients: tolerance is a positive share, got {self.tolerance!r}")

    @property
    def conserving(self) -> bool:
        """True unless the residual is left out."""
        return self.residual != "nowhere"

    @property
    def request(self) -> PathIntegral:
        """The attributions."""
        return PathIntegral(
            baseline=self.baseline,
            rule=self.rule,
            steps=self.steps,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """The attributions, and the baseline's score, which their sum is compared with."""
        return frozenset({self.request, BaselineScores(baseline=self.baseline)})

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        return signed(evidence_of(rollout, self.request, "IntegratedGradients"), rollout, residual=self.residual)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``completeness_gap``: largest abs(Σ attributions − (r(x, y) − r(x, baseline))), raw score units;
        ``incomplete``: share of responses it is beyond the tolerance for, at ``max_steps``; ``credit_residual``: mean
        of abs(score − what is attributed), score units."""
        attributions = evidence_of(rollout, self.request, "IntegratedGradients")
        attributions = torch.where(rollout.sequences.response_mask, attributions, 0)
        baseline = evidence_of(rollout, BaselineScores(baseline=self.baseline), "IntegratedGradients")
        difference = rollout.raw_scores - baseline
        return {
            "completeness_gap": float(gaps(attributions, difference).max()),
            "incomplete": 1 - float(complete(attributions, difference, self.tolerance).float().mean()),
            "credit_residual": unattributed(attributions, rollout),
        }


def gaps(attributions: Float[Tensor, "batch response"], difference: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """abs(Σ attributions − what they should sum to)."""
    return (attributions.sum(1) - difference).abs()


def complete(
    attributions: Float[Tensor, "batch response"], difference: Float[Tensor, " batch"], tolerance: float
) -> Bool[Tensor, " batch"]:
    """Whether the gap is within the tolerance, a share of the difference, or of 1 where that is less."""
    return gaps(attributions, difference) <= tolerance * difference.abs().clamp(min=1)
