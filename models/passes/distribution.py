"""The one next-token distribution, used for sampling, old, new and reference log-probabilities, entropy and full KL."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.passes.layout import token_places
from rlhf_core.types import Sequences

# Largest (token, vocab) block of float32 log-probabilities made at a time: 64 MiB, or what a CPU's cache holds.
CHUNK_CELLS = {"cpu": 2**21, "cuda": 2**24}
# Nats below which a probability is 0 in float32; stands in for the -inf of a banned token where 0 x inf would be NaN.
LOWEST = -1e4

# Ranges of ids without a token: first id, and id after the last; None is the end of the embedding.
Gap = tuple[int, int | None]


def gaps(named: Collection[int]) -> tuple[Gap, ...]:
    """Where the ids that are no token lie: holes among those that are, and whatever comes after the last."""
    ids = sorted(named)
    around = zip([0, *(token + 1 for token in ids)], [*ids, None], strict=True)
    return tuple((start, end) for start, end in around if end is None or start < end)


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets:
    """Response tokens row after row: id, how many came before it, and its row's minimum length."""

    tokens: Int[Tensor, " token"]
    steps: Int[Tensor, " token"]
    min_lengths: Int[Tensor, " token"]

    @staticmethod
    def of(sequences: Sequences) -> "Targets":
        """Those of a batch."""
        row, step = token_places(sequences.response_mask, int(sequences.counts.response.sum()))
        return Targets(tokens=sequences.response_ids[row, step], steps=step, min_lengths=sequences.min_lengths[row])

    def split(self, size: int) -> "Iterator[Targets]":
        """``size`` tokens at a time."""
        for start in range(0, len(self.tokens), size):
            part = slice(start, start + size)
            yield Targets(tokens=self.tokens[part], steps=self.steps[part], min_lengths=self.min_lengths[part])


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How logits become a distribution, for every caller: tempered, with every id of ``eos_ids`` banned below the
    minimum length, and ``unnamed`` ones always.

    Raises:
        ValueError: a temperature that divides by nothing, or not at all.
    """

    eos_ids: tuple[int, ...]
    temperature: float
    unnamed: tuple[Gap, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature divides the logits and must be a finite number above 0, got {self.temperature!r}"
            )

    def logprobs(
        self, logits: Float[Tensor, "token vocab"], targets: Targets, chunk: slice
    ) -> Float[Tensor, "chunk vocab"]:
        """Log-probabilities of a chunk of the tokens; see :func:`token_distribution`."""
        steps, lengths = targets.steps[chunk], targets.min_lengths[chunk]
        return token_distribution(logits[chunk], self.eos_ids, steps, lengths, self.temperature, unnamed=self.unnamed)

    def full_kl(
        self, logits: Float[Tensor, "token vocab"], ref_logits: Float[Tensor, "token vocab"], targets: Targets
    ) -> Float[Tensor, " token"]:
        """:func:`full_kl` of all tokens, a chunk at a time."""
        of = self.logprobs
        return torch.cat([full_kl(of(logits, targets, c), of(ref_logits, targets, c)) for c in chunks(logits)])


def chunks(logits: Float[Tensor, "token vocab"]) -> Iterator[slice]:
    """Slices of the tokens, each within ``CHUNK_CELLS``."""
    size = max(1, CHUNK_CELLS.get(logits.device.type, CHUNK_CELLS["cuda"]) // logits.shape[-1])
    return (slice(start, start + size) for start in range(0, len(logits), size))


def token_distribution(
    logits: Float[Tensor, "token vocab"],
    eos_ids: Sequence[int],
    steps: Int[Tensor, " token"],
    min_lengths: Int[Tensor, " token"],
    temperature: float,
    *,
    unnamed: Sequence[Gap] = (),
) -> Float[Tensor, "token vocab"]:
    """Log-probabilities in float32, nats: logits / ``temperature``, EOS banned (-inf) where ``steps < min_lengths``,
    and ids in the gaps ``unnamed``, which have no token, everywhere.

    ``steps`` counts a row's response tokens from 0; every id of ``eos_ids`` is banned alike. A row whose logits hold
    NaN or +inf, or whose tokens are all banned, comes out as NaN.
    """
    tempered, too_early = logits.float() / temperature, (steps < min_lengths)
    for token in eos_ids:  # a list of columns would be sent to a card anew
        tempered[:, token].masked_fill_(too_early, -torch.inf)
    for start, end in unnamed:
        tempered[:, start:end].fill_(-torch.inf)
    return tempered.log_softmax(-1)


def entropy(logprobs: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """-Σ p log p in nats; a banned token contributes 0, to the gradient too."""
    return -(logprobs.exp() * logprobs.clamp(min=LOWEST)).sum(-1)


def full_kl(
    logprobs: Float[Tensor, "token vocab"], ref_logprobs: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(policy || reference) = Σ p (log p - log p_ref) in nats; a token banned in both contributes 0."""
    difference = torch.where(logprobs.isneginf(), 0.0, logprobs - ref_logprobs)
    return (logprobs.exp() * difference).sum(-1)
