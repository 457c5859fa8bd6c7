"""From a score to per-token rewards: plain callables as reward models, score normalisation, the KL penalty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.config import ScoreConfig
from rlhf_core.distributed import global_sum
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Policy, RewardModel, Scored, Sequences

TextScorer = Callable[[list[str], list[str]], Sequence[float]]
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
IdScorer = Callable[[list[list[int]], list[list[int]]], Sequence[float]]


@dataclass(frozen=True)
class TokenReward:
    """A callable on token ids, ``fn(prompts, responses) -> scores``, as a reward model. It can show no evidence."""

    fn: IdScorer

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """One score per response; raises ValueError where the callable returns something else."""
        scores = self.fn(sequences.prompts(), sequences.responses())
        return _scored(scores, sequences, self.fn)

    def provides(self, request: EvidenceRequest) -> bool:
        """Never: a callable returns a number and nothing else."""
        return False


@dataclass(frozen=True)
class TextReward:
    """A callable on texts, ``fn(prompts, responses) -> scores``, as a reward model. It can show no evidence."""

    fn: TextScorer
    decode: Decode

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """One score per response; raises ValueError where the callable returns something else."""
        scores = self.fn(*texts(self.decode, sequences))
        return _scored(scores, sequences, self.fn)

    def provides(self, request: EvidenceRequest) -> bool:
        """Never: a callable returns a number and nothing else."""
        return False


def texts(decode: Decode, sequences: Sequences) -> tuple[list[str], list[str]]:
    """Prompts and responses as texts that, joined, are the decoded whole.

    Decoded by itself, a response may lose what a tokenizer writes only between tokens (a leading space, with
    SentencePiece). Where the whole does not begin with its decoded prompt, the response is decoded by itself.
    """
    prompts, alone = decode(sequences.prompts()), decode(sequences.responses())
    wholes = decode([[*p, *r] for p, r in zip(sequences.prompts(), sequences.responses(), strict=True)])
    responses = [
        whole[len(prompt) :] if whole.startswith(prompt) else response
        for prompt, response, whole in zip(prompts, alone, wholes, strict=True)
    ]
    return prompts, responses


def as_reward_model(reward: RewardModel | TextScorer, policy: Policy) -> RewardModel:
    """A reward model as it is; a plain callable wrapped so that it is given texts.

    Raises:
        TypeError: neither.
    """
    if isinstance(reward, RewardModel):
        return reward
    if callable(reward):
        return TextReward(reward, policy.decode)
    raise TypeError(
        f"reward must be a reward model (score, provides) or a callable on (prompts, responses), got {reward!r}"
    )


def _scored(scores: Any, sequences: Sequences, fn: object) -> Scored:
    try:
        given = torch.as_tensor(scores) if isinstance(scores, Tensor | np.ndarray) else scores
        if isinstance(given, Tensor) and (given.is_complex() or given.layout != torch.strided):
            raise TypeError("an imaginary part, or what a sparse tensor leaves out, would be lost without a word")
        values = torch.as_tensor(given, dtype=torch.float32, device=sequences.response_ids.device).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"reward {fn!r} must return a number for each of the {len(sequences)} responses, got {shortened(scores)}"
        ) from error
    if values.shape != (len(sequences),):
        raise ValueError(f"reward {fn!r} returned scores of shape {tuple(values.shape)} for {len(sequences)} responses")
    return Scored(scores=values, evidence={})


@dataclass(frozen=True)
class ScoreMoments:
    """Running count, mean and sum of squared deviations of all raw scores of a run (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def including(self, scores: Float[Tensor, " batch"]) -> "ScoreMoments":
        """The moments with one more batch, that of all processes (Chan, Golub and LeVeque 1979)."""
        values = scores.double()
        n = int(global_sum(torch.tensor(len(values))))
        mean = float(global_sum(values.sum())) / n
        count, delta = self.count + n, mean - self.mean
        within = float(global_sum((values - mean).square().sum()))
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
