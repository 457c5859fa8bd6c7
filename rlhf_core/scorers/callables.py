"""Callables as reward models. The only evidence they provide is the scores of shortened responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.probe import AttentionMaps, Baseline, Cost, Experiment, MapGradients, PathPoint, Variants, measured
from rlhf_core.scorers.signatures import RewardFunction, require_signature, scores_of, validate_columns
from rlhf_core.types import Policy, RewardModel, Row, SaysWhyNot, Scored, Sequences

Scores = Callable[[Sequences, list[int], list[list[int]]], Float[Tensor, " row"]]
"""Scores of other responses, as token ids, in the place of those of the given rows."""

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
UNDEMANDING = "sparse, uniform, abc-d, abc-d2, log-ratio, entropy, monte-carlo"
METHODS = f"{UNDEMANDING}, leave-one-out, shapley"
"""Names of the methods that ask nothing of a reward but its score, and of those that a callable can serve. The tests
hold them against the registry, which the engine does not import."""


@runtime_checkable
class ScoresResponses(Protocol):
    """A function as a reward model. What follows are the methods that are the same for texts and for ids."""

    def scores(self, sequences: Sequences, rows: list[int], responses: list[list[int]]) -> Float[Tensor, " row"]:
        """Scores of other responses, as token ids, in the place of those of the given rows."""
        ...


def provides(self: SaysWhyNot, request: EvidenceRequest) -> bool:
    """Whether a request can be answered; a method of every reward model that wraps a function."""
    return not self.why_not(request)


def require_measurable(needs: frozenset[EvidenceRequest], why_not: Callable[[EvidenceRequest], str]) -> None:
    """Raise ValueError, with the reason, for a request that cannot be answered."""
    for request in needs:
        if reason := why_not(request):
            raise ValueError(f"{request} cannot be measured: {reason}")


def _score(self: ScoresResponses, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
    """Scores, then evidence.

    Raises:
        ValueError: a need that a function cannot answer, what it returns is not one number per response, or a column
        that
            it asks for is missing.
    """
    require_measurable(needs, callable_why_not)
    home = sequences.response_ids.device
    scores = self.scores(sequences, list(range(len(sequences))), sequences.responses()).to(home)
    evidence: dict[EvidenceRequest, Tensor] = {
        request: measured(request, _probe(self, sequences)).to(home)
        for request in needs
        if isinstance(request, Experiment)
    }
    return Scored(scores=scores, evidence=evidence)


def callable_why_not(request: EvidenceRequest) -> str:
    """Why a callable cannot answer a request, and which methods work with one; empty if it can."""
    if not isinstance(request, Experiment):
        return f"a callable returns a score and nothing else; these methods work with one: {METHODS}"
    beyond = ", ".join(sorted(request.uses - {"delete"}))
    if not beyond:
        return ""
    return (
        f"a callable can score responses without some of their tokens, but not {beyond}; these methods work with one: "
        f"{METHODS}"
    )


def _probe(self: ScoresResponses, sequences: Sequences) -> "CallableProbe":
    """A probe of these responses, to measure an experiment alone and see what it costs."""
    return CallableProbe(scores_of=self.scores, sequences=sequences)


@dataclass(frozen=True)
class TokenReward:
    """A function on token ids, ``fn(prompts, responses, ...) -> scores``, as a reward model. It gets every id of the
    prompt as the policy reads it and of the response as it was sampled, including special tokens and EOS, and by name
    the columns of the prompts' rows that it asks for (all of them with ``**columns``), one entry per response. The
    evidence it provides is the scores of shortened responses (leave-one-out, Shapley values).

    Raises:
        TypeError: a function that cannot be called so; shows the right signature.
    """

    fn: RewardFunction

    validate_columns, score, provides, probe = validate_columns, _score, provides, _probe
    why_not = staticmethod(callable_why_not)

    def __post_init__(self) -> None:
        require_signature(self.fn)

    def scores(self, sequences: Sequences, rows: list[int], responses: list[list[int]]) -> Float[Tensor, " row"]:
        """Scores of other ``responses``, as token ids, in the place of those of the given ``rows`` of ``sequences``."""
        prompts = sequences.prompts()
        return scores_of(self.fn, [prompts[row] for row in rows], responses, given(sequences, rows))


@dataclass(frozen=True)
class TextReward:
    """A function on texts, ``fn(prompts, responses, ...) -> scores``, as a reward model; columns, evidence and errors
    as with ``TokenReward``.

    Prompts are the caller's own, unchanged: texts, or chats as lists of messages. Prompts given as token ids are
    decoded with ``decode``. Responses are decoded with ``decode``. ``policy.decode`` leaves out special tokens, which
    is what a plain callable gets. ``policy.decode_with_special`` keeps them all, so that a reward can look for
    ``<think>`` or ``<|im_end|>`` where these are special; a finished response then ends with the text of EOS. Text that
    a chat template puts at the end of a prompt (an opening ``<think>``) is part of the prompt, not of the response.
    """

    fn: RewardFunction
    decode: Decode

    validate_columns, score, provides, probe = validate_columns, _score, provides, _probe
    why_not = staticmethod(callable_why_not)

    def __post_init__(self) -> None:
        require_signature(self.fn)

    @property
    def identity(self) -> dict[str, object]:
        """The function alone: texts are the policy's."""
        return {"fn": self.fn}

    def scores(self, sequences: Sequences, rows: list[int], responses: list[list[int]]) -> Float[Tensor, " row"]:
        """Scores of other ``responses``, as token ids, in the place of those of the given ``rows`` of ``sequences``."""
        prompts, own = sequences.prompts(), given(sequences, rows)
        decoded, ends = texts(self.decode, [prompts[row] for row in rows], responses)
        return scores_of(self.fn, in_own_words(decoded, own), ends, own)


def given(sequences: Sequences, rows: Sequence[int]) -> list[Row]:
    """The caller's own rows for these responses; empty if the caller wrote none."""
    return [sequences.given[row] for row in rows] if sequences.given else []


def in_own_words(decoded: list[str], rows: Sequence[Row]) -> list[Any]:
    """The prompts as their caller wrote them; those that were token ids, as decoded."""
    return [row.get("prompt", text) for row, text in zip(rows, decoded, strict=True)] if rows else decoded


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
            raise ValueError("a callable has no null token: delete tokens instead")
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
        """Refused: a callable has no prefix scores."""
        raise ValueError("a callable has no prefix scores")

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """Refused."""
        raise ValueError("a callable has no embeddings")

    def attention(
        self, reduce: Callable[[AttentionMaps], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """Refused."""
        raise ValueError("a callable has no attention")

    def attention_gradients(
        self, reduce: Callable[[MapGradients], Float[Tensor, "batch response ..."]]
    ) -> Float[Tensor, "batch response ..."]:
        """Refused."""
        raise ValueError("a callable has no attention")


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


def as_reward_model(reward: RewardModel | RewardFunction, policy: Policy) -> RewardModel:
    """A reward model as it is; a plain callable wrapped so that it is given texts.

    Raises:
        TypeError: neither, or a callable with another signature than ``TextReward`` calls.
    """
    if isinstance(reward, RewardModel):
        return reward
    if callable(reward):
        return TextReward(reward, policy.decode)
    raise TypeError(
        f"reward must be a reward model (score, provides) or a callable on (prompts, responses), got {reward!r}"
    )
