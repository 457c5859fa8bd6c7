"""A probe of a tabular world: the table scores any string of tokens, so it can score every altered response.

Between strings a table has no slope. Its embeddings are one-hot vectors and its score the multilinear function of them
that agrees with the table on every string, the one smooth extension that adds nothing to it. On the way from the null
token to the response that is the multilinear extension of the replacement game, whose integrated gradients are its
Shapley values (Owen 1972, "Multilinear extensions of games").
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress, product
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.worlds.tabular import Tokens, World
from rlhf_core.probe import Ability, AttentionMaps, Baseline, Cost, MapGradients, PathPoint, Variants
from rlhf_core.types import Sequences

ABILITIES: frozenset[Ability] = frozenset({"delete", "replace", "prefix_scores", "embedding_gradients"})


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class TabularProbe:
    """A ``Probe`` (see rlhf_core.probe) of a world's responses, in float64; of all of them unless ``rows`` says."""

    world: World
    rows: Int[Tensor, " row"] | None = None
    cost: Cost = field(default_factory=Cost)

    @cached_property
    def sequences(self) -> Sequences:
        """The responses."""
        return self.world.sequences if self.rows is None else self.world.sequences.select(self.rows)

    @cached_property
    def responses(self) -> tuple[Tokens, ...]:
        """The same as tokens."""
        return tuple(tuple(row) for row in self.sequences.responses())

    def select(self, rows: Int[Tensor, " row"]) -> "TabularProbe":
        """Some of the rows, at the same cost account."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    @cached_property
    def _null(self) -> int:
        """A token of its own, which no policy writes."""
        return self.world.words + 1

    def scores(self, variants: Variants) -> Float[Tensor, "batch variant"]:
        """What the table says of each altered response."""
        self.cost.forwards += variants.keep.shape[0] * variants.keep.shape[1]
        rows = zip(self.responses, variants.keep.tolist(), strict=True)
        return _doubles([[self._score(row, kept, variants.absent) for kept in some] for row, some in rows])

    def prefix_scores(self) -> Float[Tensor, "batch response"]:
        """What the table says of the beginnings, r(x, nothing) first."""
        self.cost.forwards += len(self.responses)
        width = self.sequences.response_mask.shape[1]
        rows = self.responses
        return _doubles([[self.world.table(row[:t]) if t < len(row) else 0.0 for t in range(width)] for row in rows])

    def embedding_gradients(self, alpha: float, baseline: Baseline) -> PathPoint:
        """The multilinear extension where every token of the response is there to the share alpha."""
        self.cost.forwards += len(self.responses)
        self.cost.backwards += len(self.responses)
        points, width = [], self.sequences.response_mask.shape[1]
        for row in self.responses:
            there = torch.tensor(list(product((False, True), repeat=len(row))))
            points.append(_extension(self._corners(row, there, baseline), there, alpha))
        contributions = torch.zeros(len(points), width, dtype=torch.float64)
        for number, (_, found) in enumerate(points):
            contributions[number, : len(found)] = found
        return PathPoint(scores=torch.stack([score for score, _ in points]), contributions=contributions)

    def attention(self, reduce: Callable[[AttentionMaps], Tensor]) -> Tensor:
        """Refused: one layer is made up for taps, and nothing says how layers follow each other."""
        raise ValueError("a table has no attention maps of whole models")

    def attention_gradients(self, reduce: Callable[[MapGradients], Tensor]) -> Tensor:
        """Refused."""
        raise ValueError("a table's score has no slope along attention that was made up")

    def _corners(
        self, row: Tokens, there: Bool[Tensor, "corner token"], baseline: Baseline
    ) -> Float[Tensor, " corner"]:
        """The score where each token is there or not. A token whose embedding is zero makes a multilinear score 0."""
        if baseline == "zero":
            return there.all(1) * self.world.table(row)
        return _doubles([self._score(row, kept, "replace") for kept in there.tolist()])

    def _score(self, row: Tokens, kept: list[bool], absent: str) -> float:
        if absent == "delete":
            return self.world.table(tuple(compress(row, kept)))
        return self.world.table(tuple(token if here else self._null for token, here in zip(row, kept, strict=False)))


def _extension(
    corners: Float[Tensor, " corner"], there: Bool[Tensor, "corner token"], alpha: float
) -> tuple[Float[Tensor, ""], Float[Tensor, " token"]]:
    """Σ_S v(S) Π_{k∈S} α Π_{k∉S} (1 − α), and its derivative by each token's own share."""
    shares = torch.where(there, alpha, 1 - alpha).double()
    slopes = []
    for token in range(there.shape[1]):
        others = torch.cat([shares[:, :token], shares[:, token + 1 :]], dim=1).prod(1)
        slopes.append((corners * others * torch.where(there[:, token], 1, -1)).sum())
    return (corners * shares.prod(1)).sum(), torch.stack(slopes)


def _doubles(values: list[list[float]] | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
