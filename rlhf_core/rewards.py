"""From a score to per-token rewards: score normalisation and the KL penalty."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.config import ScoreConfig


@dataclass(frozen=True)
class ScoreMoments:
    """Running count, mean and sum of squared deviations of all raw scores of a run (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def including(self, scores: Float[Tensor, " batch"]) -> "ScoreMoments":
        """The moments with one more batch (Chan, Golub and LeVeque 1979)."""
        values = scores.double()
        n = len(values)
        mean = float(values.sum()) / n
        count, delta = self.count + n, mean - self.mean
        within = float((values - mean).square().sum())
        squares = self.squares + within + delta**2 * self.count * n / count
        return ScoreMoments(count, self.mean + delta * n / count, squares)

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 0 for fewer than two scores."""
        return float((self.squares / max(self.count - 1, 1)) ** 0.5)


def normalise_scores(
    raw_scores: Float[Tensor, " batch"], moments: ScoreMoments, config: ScoreConfig
) -> tuple[Float[Tensor, " batch"], float]:
    """Centre, scale and clip the scalar scores; also the factor that scaled them.

    Done before redistribution, because clipping single tokens would break the sum. Scores that have had no spread so
    far, or none but that of rounding, are not scaled.
    """
    centre = {"none": 0.0, "running_mean": moments.mean}[config.centring]
    spread = {"none": 1.0, "running_std": moments.std}[config.scaling]
    scale = 1 / spread if spread > _resolution(moments) else 1.0
    scores = (raw_scores - centre) * scale
    if config.clip is not None:
        scores = scores.clamp(-config.clip, config.clip)
    return scores, scale


def _resolution(moments: ScoreMoments) -> float:
    """The largest spread that rounding alone explains: scores that differ at all in float32 differ by more than this
    share of their size. And none so small that one over it overflows."""
    return max(1e-12 * abs(moments.mean), torch.finfo(torch.float32).tiny)


def penalised(
    token_scores: Float[Tensor, "batch response"], kl: Float[Tensor, "batch response"], kl_coef: float
) -> Float[Tensor, "batch response"]:
    """token_scores − kl_coef · kl: the rewards GAE sees (paper, eq. 4). The penalty is never redistributed."""
    return token_scores - kl_coef * kl
