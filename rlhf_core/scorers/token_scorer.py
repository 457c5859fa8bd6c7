"""Scorers that reward tokens or spans of a response themselves, such as process reward models and rule checkers.

The score of a response is the sum of these rewards; ``OwnTokenRewards`` requests the rewards per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest, Source
from rlhf_core.scorers.callables import UNDEMANDING, Decode, in_own_words, provides, require_measurable, texts
from rlhf_core.scorers.signatures import RewardFunction, lists_of, require_signature, validate_columns
from rlhf_core.scorers.spans import as_spans, byte_offsets, ends_of_prefixes, row_shares, shared_bytes
from rlhf_core.types import Scored, Sequences


@dataclass(frozen=True, kw_only=True)
class OwnTokenRewards(EvidenceRequest):
    """The scorer's own reward of each response token, (batch, response), in raw score units; rows sum to the raw
    scores."""

    source: Source = "reward"


@runtime_checkable
class RewardsTokens(Protocol):
    """Base of reward models whose function rewards parts of a response. These methods are common to both kinds."""

    def rewards(self, sequences: Sequences) -> Float[Tensor, "batch response"]:
        """The reward of each token, in float64."""
        ...


def score_parts(self: RewardsTokens, sequences: Sequences, needs: frozenset[EvidenceRequest]) -> Scored:
    """The sum of each response's rewards, and each token's reward if it is requested; raises like ``rewards``."""
    require_measurable(needs, token_scorer_why_not)
    rewards = self.rewards(sequences).float().to(sequences.response_ids.device)
    return Scored(scores=rewards.sum(1), evidence=dict.fromkeys(needs, rewards))


def token_scorer_why_not(request: EvidenceRequest) -> str:
    """Why such a scorer cannot answer a request, and which methods work with one; empty if it can."""
    if isinstance(request, OwnTokenRewards):
        return ""
    return (
        "a scorer with rewards of its own shows OwnTokenRewards and nothing else; these methods work with one: "
        f"OwnRewards, {UNDEMANDING}"
    )


@dataclass(frozen=True)
class PerTokenReward:
    """``fn(prompts, responses, ...)`` with a reward for every response token, as a reward model.

    ``fn`` gets token ids without padding, EOS included, and columns by name as in ``TokenReward``; it returns as many
    numbers for each response as it has tokens.

    Raises:
        TypeError: a function that cannot be called so; shows the right signature.
    """

    fn: RewardFunction

    validate_columns, score, provides = validate_columns, score_parts, provides
    why_not = staticmethod(token_scorer_why_not)

    def __post_init__(self) -> None:
        require_signature(self.fn)

    def rewards(self, sequences: Sequences) -> Float[Tensor, "batch response"]:
        """What each response token of ``sequences`` earned, (batch, response) in float64, raw score units.

        Raises:
            ValueError: not one list per response, or one of another length than its response; names the row. A column
                that the function asks for is missing.
        """
        given = lists_of(self.fn, sequences.prompts(), sequences.responses(), sequences.given)
        rewards = torch.zeros(sequences.response_mask.shape, dtype=torch.float64)
        for row, (numbers, length) in enumerate(zip(given, sequences.response_lengths.tolist(), strict=True)):
            found = _numbers(numbers, f"reward {self.fn!r}, row {row}")
            if found.shape != (length,):
                raise ValueError(
                    f"reward {self.fn!r} returned rewards of shape {tuple(found.shape)} for row {row}, whose response "
                    f"has {length} tokens, EOS included"
                )
            rewards[row, :length] = found
        return rewards


@dataclass(frozen=True)
class SpanReward:
    """``fn(prompts, responses, ...)`` with rewards for spans of the responses' texts, as a reward model.

    For each response, ``fn`` returns (start, end, reward) with 0 <= start < end <= the number of its characters; spans
    may overlap and leave gaps. Each reward is split over the tokens it covers by bytes. A response without text (EOS
    alone) has one possible span, (0, 0), which is its last token's. ``decode`` is the policy's. See ``TextReward`` for
    special tokens, prompts, columns and errors.
    """

    fn: RewardFunction
    decode: Decode

    validate_columns, score, provides = validate_columns, score_parts, provides
    why_not = staticmethod(token_scorer_why_not)

    def __post_init__(self) -> None:
        require_signature(self.fn)

    @property
    def identity(self) -> dict[str, object]:
        """The function alone: texts are the policy's."""
        return {"fn": self.fn}

    def rewards(self, sequences: Sequences) -> Float[Tensor, "batch response"]:
        """What each response token of ``sequences`` earned, (batch, response) in float64, raw score units.

        Raises:
            ValueError: not one list of spans per response, or a span that is none or lies outside; names the row. A
                column that the function asks for is missing.
        """
        prompts, responses = texts(self.decode, sequences.prompts(), sequences.responses())
        given = lists_of(self.fn, in_own_words(prompts, sequences.given), responses, sequences.given)
        rewards = torch.zeros(sequences.response_mask.shape, dtype=torch.float64)
        for row, (spans, text) in enumerate(zip(given, responses, strict=True)):
            where, earned = _spans(spans, text, f"reward {self.fn!r}, row {row}")
            before, ids = sequences.prompts()[row], sequences.responses()[row]
            tokens = token_spans(self.decode, before, ids, prompts[row], text)
            rewards[row, : len(tokens)] = earned.double() @ row_shares(shared_bytes(where, tokens)).double()
        return rewards


def token_spans(
    decode: Decode, before: Sequence[int], ids: Sequence[int], prompt: str, response: str
) -> Int[Tensor, "token 2"]:
    """First and last byte of each of the tokens ``ids`` in the text ``response`` that they decode to after those
    ``before`` them, whose text is ``prompt`` (see :func:`rlhf_core.scorers.callables.texts`). Counted from where the
    response starts; the first token's covers what comes before it too."""
    if decode([[*before, *ids]])[0] != prompt + response:  # decoded by itself: see texts
        before, prompt = [], ""
    prefixes = decode([[*before, *ids[: k + 1]] for k in range(len(ids))])
    return as_spans(ends_of_prefixes(prefixes, prompt + response)) - len(prompt.encode())


def _spans(given: Any, text: str, who: str) -> tuple[Int[Tensor, "span 2"], Float[Tensor, " span"]]:
    """Start and end byte of each span, and its reward."""
    found = _numbers(given, who)
    if not len(found):
        return torch.zeros(0, 2, dtype=torch.long), torch.zeros(0)
    if found.ndim != 2 or found.shape[1] != 3:
        raise ValueError(f"{who}: spans are (start, end, reward), got {shortened(given)}")
    offsets = byte_offsets(text)
    for start, end, _ in found.tolist():
        whole = start == int(start) and end == int(end)
        if not (whole and (0 <= start < end <= len(text) or start == end == len(text) == 0)):
            raise ValueError(
                f"{who}: the span ({start:g}, {end:g}) does not fit its response of {len(text)} characters, "
                f"{shortened(text)}; a span is start < end, counted in characters from 0"
            )
    in_bytes = [[offsets[int(start)], offsets[int(end)]] for start, end, _ in found.tolist()]
    return torch.tensor(in_bytes), found[:, 2]


def _numbers(given: Any, who: str) -> Float[Tensor, "..."]:
    """In float64, which holds every position.

    Raises:
        ValueError: something that is not a number, or not a finite one.
    """
    try:
        found = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{who}: expected numbers, got {shortened(given)}") from error
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{who}: rewards must be finite, got {shortened(given)}")
    return found
