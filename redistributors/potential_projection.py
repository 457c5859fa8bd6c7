"""Turn any method's credit into exact shaping: differences of a potential that is learned from earlier steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import check_discount, check_inner, evidence_of, shaped
from redistributors.parts.ridge import RecursiveRidge
from redistributors.parts.state_features import HiddenState, Position, StateFeature
from redistributors.parts.typed_name import as_typed
from redistributors.reward_attention import RewardAttention
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.masking import last_token
from rlhf_core.types import Learns, Redistributor, Rollout


@dataclass(frozen=True, kw_only=True)
class PotentialProjection:
    """token_score_t = γ Φ(s_{t+1}) − Φ(s_t) + [t = T] · score, with Φ(s_1) = Φ(end) = 0.

    Φ(s_t) is a ridge regression, on ``features`` of the state s_t = (x, y_<t), of what the ``inner`` method gave to the
    tokens before t, Σ_{k<t} c_k: only the part of its credit that the state predicts is kept. The fit is ours; that
    differences of any potential change no optimal policy is Ng, Harada and Russell 1999, and of one that moves between
    steps Devlin and Kudenko 2012. Advantages are those of the sparse score with Φ added to the critic's values, for
    every γ and λ (Wiewiora 2003), however badly Φ fits. So ABC, which is not shaping, becomes shaping.

    ``observe`` is called after the update, so Φ knows earlier steps only; a fit on the rollout that it shapes would
    leak the scores of that rollout into earlier tokens. Within a step Φ is one fixed function. Before anything was
    observed Φ is 0 and the method is sparse. Sums to the score at γ = 1, whatever ``inner`` sums to; discounted
    otherwise. ``gamma`` must be the config's; an ``inner`` made for a discount must be made for 1.

    The default features are those that predict best on the embedded task (R² on the next step's ABC credit, 16 rows of
    up to 24 tokens, mean of steps 21 to 40, three seeds): position and the frozen reward model's hidden states 0.63,
    with the default decay 0.66, and no more with the policy's figures added (critic's values, log-probabilities so
    far). Position and those figures alone reach 0.48, as they move with policy and critic; position alone 0.11.

    ``ridge`` is relative to the features' own size (``RecursiveRidge``). ``decay`` multiplies the weight of all older
    steps at each new step. Sums are kept in raw score units, so they stay valid when the scale of the scores changes. A
    copy by ``dataclasses.replace`` has the same settings and has learned nothing.

    Raises:
        ValueError: a setting out of range, no features, or an inner method that learns itself or is discounted.
    """

    inner: Redistributor = field(default_factory=RewardAttention)
    gamma: float = 1.0
    ridge: float = 1e-3
    decay: float = 0.95
    features: tuple[StateFeature, ...] = (Position(), HiddenState())
    _fit: RecursiveRidge = field(init=False, repr=False, compare=False)
    __str__ = as_typed

    def __post_init__(self) -> None:
        _check(self)
        size = 1 + sum(feature.size for feature in self.features)
        object.__setattr__(self, "_fit", RecursiveRidge(size=size, ridge=self.ridge, decay=self.decay))

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """What the inner method and the features read."""
        return self.inner.needs.union(*(feature.needs for feature in self.features))

    @property
    def causal(self) -> bool:
        """A potential of the state never depends on later tokens, whatever the inner method does."""
        return True

    @property
    def shaping(self) -> bool:
        """True, however badly the potential fits."""
        return True

    @property
    def conserving(self) -> bool:
        """Undiscounted, the potential cancels out."""
        return self.gamma == 1

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        self._require_evidence(rollout)
        mask = rollout.sequences.response_mask
        potential = rollout.score_scale * self.potential(rollout)
        token_scores = shaped(potential, mask, gamma=self.gamma) + rollout.scores[:, None] * last_token(mask)
        return token_scores.to(rollout.scores.dtype).detach()

    def potential(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Φ of the state before every token of ``rollout``, in raw score units, float64; 0 before the first."""
        later = _later_states(rollout)
        return torch.where(later, self._states(rollout) @ self._fit.weights().to(later.device), 0)

    def observe(self, rollout: Rollout) -> None:
        """Take in what the inner method gave in ``rollout``, for the steps to come."""
        later = _later_states(rollout)
        self._fit.observe(self._states(rollout)[later], self._target(rollout)[later])

    def state(self) -> Mapping[str, Tensor]:
        """The sums of the regression."""
        return self._fit.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``, the sums of a regression; raises ValueError for those of other features."""
        self._fit.load_state(state)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``potential_r2``: share of the variance of this rollout's inner credit so far, over all states but first
        ones, that the potential of earlier steps explains; no better than a constant at 0; left out before anything was
        observed and where that credit does not vary. ``potential_observations``: states seen, decayed."""
        self._require_evidence(rollout)
        later = _later_states(rollout)
        target, potential = self._target(rollout)[later], self.potential(rollout)[later]
        figures = {"potential_observations": self._fit.observations}
        spread = float((target - target.mean()).square().sum()) if len(target) else 0.0
        if self._fit.observations and spread > 0:
            figures["potential_r2"] = 1 - float((target - potential).square().sum()) / spread
        return figures

    def _states(self, rollout: Rollout) -> Float[Tensor, "batch response feature"]:
        mask = rollout.sequences.response_mask[..., None]
        parts = [torch.ones(mask.shape, device=mask.device), *(feature(rollout) for feature in self.features)]
        return torch.cat([torch.where(mask, part.double(), 0) for part in parts], dim=-1)

    def _target(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Σ_{k<t} c_k of the inner method, raw score units."""
        credit = self.inner(rollout).double() / rollout.score_scale
        return credit.cumsum(1) - credit

    def _require_evidence(self, rollout: Rollout) -> None:
        for request in self.needs:
            evidence_of(rollout, request, "PotentialProjection")


def _later_states(rollout: Rollout) -> Tensor:
    """Every state but the first of a response, whose potential is 0 by definition."""
    later = rollout.sequences.response_mask.clone()
    later[:, 0] = False
    return later


def _is_feature(one: object) -> bool:
    return isinstance(one, StateFeature) and not isinstance(one, type)


def _check(method: PotentialProjection) -> None:
    who = "PotentialProjection"
    check_discount(method.gamma, who)
    check_inner(method.inner, who)
    if isinstance(method.inner, Learns):
        raise ValueError(f"{who}: inner must not change during a run, but {method.inner} learns")
    features = method.features
    if not (isinstance(features, tuple) and features and all(map(_is_feature, features))):
        raise ValueError(f"{who}: features must be a tuple of state features, got {features!r}")
