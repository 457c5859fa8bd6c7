"""Callables as reward models. Of evidence they show what scores of shortened responses tell, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from reprlib import repr as shortened
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.probe import AttentionMaps, Baseline, Cost, Experiment, MapGradients, PathPoint, Variants, measured
from rlhf_core.types import Policy, RewardModel, Scored, Sequences

Scores = Callable[[Sequences, list[int], list[list[int]]], Float[Tensor, " row"]]
"""Scores of other responses, as token ids, in the place of those of the given rows."""

TextScorer = Callable[[list[str], list[str]], Sequence[float]]
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
IdScorer = Callable[[list[list[int]], list[list[int]]], Sequence[float]]
UNDEMANDING = "sparse, uniform, abc-d, abc-d2, log-ratio"
METHODS = f"{UNDEMANDING}, leave-one-out, shapley"
"""Names of the methods that ask nothing of a reward but its score, and of those that a callable can serve. The tests
hold them against the registry, which the engine does not import."""


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

    def probe(self, sequences: Sequences) -> "CallableProbe":
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

    def probe(self, sequences: Sequences) -> "CallableProbe":
        """A probe of these responses, to measure an experiment alone and see what it costs."""
        return CallableProbe(scores_of=self._scores, sequences=sequences)

    def _scores(self, sequences: Sequences, rows: list[int], responses: list[list[int]]) -> Tensor:
        prompts = sequences.prompts()
        decoded, ends = texts(self.decode, [prompts[row] for row in rows], responses)
        begins = [sequences.given[row] for row in rows] if sequences.given else decoded
        return _checked(self.fn(begins, ends), len(responses), self.fn)


def why_not(request: EvidenceRequest) -> str:
    """Why a callable cannot answer a request, in words, and what works with one; empty where it can."""
    if not isinstance(request, Experiment):
        return f"a callable returns a score and shows nothing else; these methods work with one: {METHODS}"
    beyond = ", ".join(sorted(request.uses - {"delete"}))
    if not beyond:
        return ""
    return (
        f"a callable can score responses without some of their tokens, but not {beyond}; these methods work with one: "
        f"{METHODS}"
    )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class CallableProbe:
    """A ``Probe`` (see rlhf_core.probe) of a callable."""

    scores_of: Scores
    sequences: Sequences
    cost: Cost = field(default_factory=Cost)

    def select(self, rows: Int[Tensor, " row"]) -> "CallableProbe":
        """The same callable asked about some of the rows."""
        return replace(self, sequences=self.sequences.select(rows))

    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """Scores of shortened responses, each different one once; raises ValueError where tokens are to be replaced."""
        if variants.absent != "delete":
            raise ValueError("a callable has no token that stands for nothing: delete tokens instead")
        prompts, responses = self.sequences.prompts(), self.sequences.responses()
        wanted = [
            (row, tuple(token for token, stands in zip(responses[row], kept, strict=False) if stands))
            for row, of_row in enumerate(variants.keep.tolist())
            for kept in of_row
        ]
        distinct = {key: number for number, key in enumerate(dict.fromkeys(wanted))}
        with self.cost.timed():
            scores = self.scores_of(self.sequences, [row for row, _ in distinct], [list(kept) for _, kept in distinct])
        self.cost.forwards += len(distinct)
        self.cost.tokens += sum(len(prompts[row]) + len(kept) for row, kept in distinct)
        which = torch.tensor([distinct[key] for key in wanted], device=scores.device)
        return scores[which].reshape(variants.keep.shape[:2]).to(self.sequences.response_ids.device)

    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """Refused: one call says nothing about beginnings."""
        raise ValueError("a callable has no prefix scores")

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """Refused."""
        raise ValueError("a callable has no embeddings")

    def attention(
        self, reduce: Callable[[AttentionMaps], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """Refused."""
        raise ValueError("a callable shows no attention")

    def attention_gradients(
        self, reduce: Callable[[MapGradients], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """Refused."""
        raise ValueError("a callable shows no attention")


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
