"""Segments: another method's credit, summed over n-grams, sentences or other segments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from redistributors.parts.credit import check_inner, evidence_of
from redistributors.parts.typed_name import as_typed
from redistributors.reward_attention import RewardAttention
from rlhf_core.evidence import EvidenceRequest, SentenceEnds, TokenEntropy
from rlhf_core.masking import last_token
from rlhf_core.types import Learns, Redistributor, ReportsMetrics, Rollout

Place = Literal["spread", "end"]


@runtime_checkable
class Boundaries(Protocol):
    """Where segments end: a pure function of a rollout, like a redistributor.

    ``causal``: whether a token ends a segment never changes when only later tokens do. The last token always ends one,
    and values on padding are ignored.
    """

    @property
    def needs(self) -> frozenset[EvidenceRequest]: ...  # noqa: D102
    @property
    def causal(self) -> bool: ...  # noqa: D102
    def ends(self, rollout: Rollout) -> Bool[Tensor, "batch response"]:
        """True on tokens that end a segment."""
        ...


@dataclass(frozen=True, kw_only=True)
class NGrams:
    """Segments of ``n`` tokens; the last of a response may be shorter. ValueError for ``n`` below 1."""

    n: int = 5
    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset()
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.n) is not int or self.n < 1:
            raise ValueError(f"NGrams: n is a number of tokens, at least 1, got {self.n!r}")

    def ends(self, rollout: Rollout) -> Bool[Tensor, "batch response"]:
        """True on every ``n``-th token of the ``rollout``."""
        mask = rollout.sequences.response_mask
        return (torch.arange(1, mask.shape[1] + 1, device=mask.device) % self.n == 0).expand_as(mask)


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Sentences, judged by single tokens: a segment ends with a token that holds one of ``marks``.

    "3.14" and "e.g." are cut too, if one of their tokens holds a full stop.

    Raises:
        ValueError: no ``marks``.
    """

    marks: str = SentenceEnds.marks
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.marks, str) or not self.marks:
            raise ValueError(f"Sentences: marks are the characters that end a sentence, got {self.marks!r}")

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """What the policy's tokenizer says of each token."""
        return frozenset({SentenceEnds(marks=self.marks)})

    def ends(self, rollout: Rollout) -> Bool[Tensor, "batch response"]:
        """True on tokens that hold a mark."""
        return evidence_of(rollout, SentenceEnds(marks=self.marks), "Sentences") > 0.5


@dataclass(frozen=True, kw_only=True)
class EntropyPeaks:
    """A segment begins with every token that was sampled from a distribution of more than ``threshold`` nats, because a
    new thought tends to start where the policy is uncertain (Yin et al. 2025, "Segmenting text and learning their
    rewards for improved RLHF in language model").

    A fixed threshold, neither a quantile of the response nor a comparison with the next token, so that the cut before a
    token is known before it is drawn.

    Raises:
        ValueError: a ``threshold`` that is not a number of 0 or more.
    """

    threshold: float = 2.0
    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset({TokenEntropy()})
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise ValueError(f"EntropyPeaks: threshold is an entropy in nats, at least 0, got {self.threshold!r}")

    def ends(self, rollout: Rollout) -> Bool[Tensor, "batch response"]:
        """True on tokens before such a token."""
        begins = evidence_of(rollout, TokenEntropy(), "EntropyPeaks") > self.threshold
        return torch.nn.functional.pad(begins[:, 1:], (0, 1))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The token scores of ``inner``, summed over each segment; sums to what ``inner`` sums to.

    A segment is one action made of tokens (macro actions: Chai et al. 2024, "MA-RLHF"). ``place``: every token of a
    segment gets an equal part of its sum ("spread", as Yin et al. 2025 do), or its last token gets all ("end").

    Causal if ``inner`` and ``boundaries`` are causal and sums are placed at the end: a sum that is spread reveals the
    segment's last token to its first. That the response's last token ends a segment is no look-ahead, just as the score
    on it in sparse is none.

    Sums are undiscounted, so ``gamma`` is 1. ``inner`` must not learn, because nothing would call its ``observe``.
    Costs what ``inner`` costs.

    Raises:
        ValueError: an ``inner`` that is not a redistributor, is made for a discount, or learns; ``boundaries`` that are
            none; an unknown ``place``.
    """

    inner: Redistributor = field(default_factory=RewardAttention)
    boundaries: Boundaries = field(default_factory=NGrams)
    place: Place = "spread"
    gamma: ClassVar[float] = 1.0
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_inner(self.inner, "Segment")
        if isinstance(self.inner, Learns):
            raise ValueError(f"Segment: inner must not learn, but {self.inner} does; make Segment its inner method")
        if isinstance(self.boundaries, type) or not isinstance(self.boundaries, Boundaries):
            raise ValueError(f"Segment: boundaries must be like NGrams() or Sentences(), got {self.boundaries!r}")
        if self.place not in get_args(Place):
            raise ValueError(f"Segment: place must be one of {', '.join(get_args(Place))}, got {self.place!r}")

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """The inner method's, and what tells the boundaries."""
        return self.inner.needs | self.boundaries.needs

    @property
    def causal(self) -> bool:
        """True if no sum is placed before its last token."""
        return self.inner.causal and self.boundaries.causal and self.place == "end"

    @property
    def shaping(self) -> bool:
        """True if ``inner`` is: the potential is then constant within a segment."""
        return self.causal and bool(getattr(self.inner, "shaping", False))

    @property
    def conserving(self) -> bool:
        """The same as for the inner method."""
        return self.inner.conserving

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        ends = self._ends(rollout)
        token_scores = PLACES[self.place](self.inner(rollout), ends)
        return token_scores.masked_fill(~rollout.sequences.response_mask, 0).detach()

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``segments``: mean number per response; and what the inner method reports."""
        inner = self.inner.metrics(rollout) if isinstance(self.inner, ReportsMetrics) else {}
        return {**inner, "segments": float(self._ends(rollout).sum(1).float().mean())}

    def _ends(self, rollout: Rollout) -> Bool[Tensor, "batch response"]:
        for request in self.needs:
            evidence_of(rollout, request, f"Segment of {type(self.inner).__name__}")
        mask = rollout.sequences.response_mask
        return (self.boundaries.ends(rollout) & mask) | last_token(mask)


def at_end(
    token_scores: Float[Tensor, "batch response"], ends: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Each segment's sum on the token that ends it, 0 elsewhere."""
    return torch.where(ends, _sums(token_scores, ends), 0)


def evenly(
    token_scores: Float[Tensor, "batch response"], ends: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Each segment's mean on every one of its tokens."""
    return _sums(token_scores, ends) / _sums(torch.ones_like(token_scores), ends)


def _sums(
    token_scores: Float[Tensor, "batch response"], ends: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """The sum over each token's segment; what follows the last end is a segment too."""
    segment = ends.cumsum(1) - ends.long()
    return torch.zeros_like(token_scores).scatter_add(1, segment, token_scores).gather(1, segment)


PLACES: Mapping[Place, Callable[[Tensor, Tensor], Tensor]] = {"spread": evenly, "end": at_end}
