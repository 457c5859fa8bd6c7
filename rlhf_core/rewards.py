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
from rlhf_core.probe import Experiment, measured
from rlhf_core.scorers.callable_probe import CallableProbe, Scores, why_not
from rlhf_core.types import Policy, RewardModel, Scored, Sequences

TextScorer = Callable[[list[str], list[str]], Sequence[float]]
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
IdScorer = Callable[[list[list[int]], list[list[int]]], Sequence[float]]


@dataclass(frozen=True)
class TokenReward:
    """A callable on token ids, ``fn(prompts, responses) -> scores``, as a reward model: every id of the prompt as the
    policy reads it and of the response as it was sampled, special tokens and EOS among them. Of evidence it can show
    what scores of shortened responses tell (leave-one-out, Shapley values)."""

    fn: IdScorer

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """One score per response; raises ValueError where the callable returns something else."""
        return _scored(self._scores, sequences, needs)

    def provides(self, request: EvidenceRequest) -> bool:
        """Experiments that only delete tokens."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why a request cannot be answered."""
        return why_not(request)

    def probe(self, sequences: Sequences) -> CallableProbe:
        """A probe of these responses, to measure an experiment alone and see what it costs."""
        return CallableProbe(scores_of=self._scores, sequences=sequences)

    def _scores(self, sequences: Sequences, rows: list[int], responses: list[list[int]]) -> Tensor:
        prompts = sequences.prompts()
        return _checked(self.fn([prompts[row] for row in rows], responses), len(responses), self.fn)


@dataclass(frozen=True)
class TextReward:
    """A callable on texts, ``fn(prompts, responses) -> scores``, as a reward model. Of evidence it can show what scores
    of shortened responses tell (leave-one-out, Shapley values).

    Prompts are the caller's own texts, to the letter; where token ids were given, what ``decode`` makes of them.
    Responses are what ``decode`` makes of them: ``policy.decode`` leaves special tokens out, as a plain callable is
    given them, and ``policy.decode_with_special`` writes them all, so that a reward can ask for ``<think>`` or
    ``<|im_end|>`` where these are special; a response that the policy ended then ends with the text of EOS. What a chat
    template wrote at the end of a prompt (an opening ``<think>``) stands in the prompt, and not in the response.
    """

    fn: TextScorer
    decode: Decode

    @property
    def identity(self) -> dict[str, object]:
        """The function alone: texts are the policy's."""
        return {"fn": self.fn}

    def score(self, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
        """One score per response; raises ValueError where the callable returns something else."""
        return _scored(self._scores, sequences, needs)

    def provides(self, request: EvidenceRequest) -> bool:
        """Experiments that only delete tokens."""
        return not self.why_not(request)

    def why_not(self, request: EvidenceRequest) -> str:
        """Why a request cannot be answered."""
        return why_not(request)

    def probe(self, sequences: Sequences) -> CallableProbe:
        """A probe of these responses, to measure an experiment alone and see what it costs."""
        return CallableProbe(scores_of=self._scores, sequences=sequences)

    def _scores(self, sequences: Sequences, rows: list[int], responses: list[list[int]]) -> Tensor:
        prompts = sequences.prompts()
        decoded, ends = texts(self.decode, [prompts[row] for row in rows], responses)
        begins = [sequences.given[row] for row in rows] if sequences.given else decoded
        return _checked(self.fn(begins, ends), len(responses), self.fn)


def texts(decode: Decode, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> tuple[list[str], list[str]]:
    """Prompts and responses as texts that, joined, are the decoded whole.

    Decoded by itself, a response may lose what a tokenizer writes only between tokens (a leading space, with
    SentencePiece). Where the whole does not begin with its decoded prompt, the response is decoded by itself.
    """
    begins, alone = decode(prompts), decode(responses)
    wholes = decode([[*p, *r] for p, r in zip(prompts, responses, strict=True)])
    ends = [
        whole[len(prompt) :] if whole.startswith(prompt) else response
        for prompt, response, whole in zip(begins, alone, wholes, strict=True)
    ]
    return begins, ends


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


def _scored(scores_of: Scores, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
    """Scores, then evidence.

    Raises:
        ValueError: a need that a callable cannot answer, or what it returns is not one number a response.
    """
    for request in needs:
        if reason := why_not(request):
            raise ValueError(f"{request} cannot be measured: {reason}")
    home = sequences.response_ids.device
    scores = scores_of(sequences, list(range(len(sequences))), sequences.responses()).to(home)
    evidence = {
        request: measured(request, CallableProbe(scores_of=scores_of, sequences=sequences)).to(home)
        for request in needs
        if isinstance(request, Experiment)
    }
    return Scored(scores=scores, evidence=dict(evidence.items()))


def _checked(scores: Any, responses: int, fn: object) -> Float[Tensor, " row"]:
    """What a callable returned, as float32 on the CPU."""
    try:
        given = torch.as_tensor(scores) if isinstance(scores, Tensor | np.ndarray) else scores
        if isinstance(given, Tensor) and (given.is_complex() or given.layout != torch.strided):
            raise TypeError("an imaginary part, or what a sparse tensor leaves out, would be lost without a word")
        values = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"reward {fn!r} must return a number for each of the {responses} responses, got {shortened(scores)}"
        ) from error
    if values.shape != (responses,):
        raise ValueError(f"reward {fn!r} returned scores of shape {tuple(values.shape)} for {responses} responses")
    return values


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
