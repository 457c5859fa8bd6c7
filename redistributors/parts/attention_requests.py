"""Evidence read from attention rows: the requests of ABC, ABC-D and ABC-D2, and ways to combine the heads.

All keep only the columns of the response; nothing is renormalised here.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import AttentionTap, ColumnTap, Layout, ValueTap, on_response


@runtime_checkable
class Heads(Protocol):
    """A way to reduce heads; frozen and hashable, as it is part of a request."""

    def __call__(self, weights: Float[Tensor, "batch head ..."]) -> Float[Tensor, "batch ..."]:
        """Combine the weights of all heads into one."""
        ...

    def why_not(self, heads: int) -> str:
        """Why ``heads`` heads cannot be combined, in words; empty if they can."""
        ...


@dataclass(frozen=True)
class MeanHeads:
    """The mean over heads."""

    def __call__(self, weights: Float[Tensor, "batch head ..."]) -> Float[Tensor, "batch ..."]:
        """Sums to 1 over keys, as the heads do."""
        return weights.mean(1)

    def why_not(self, heads: int) -> str:
        """Never."""
        return ""


@dataclass(frozen=True)
class MaxHeads:
    """The largest weight any head gives, for each pair of tokens by itself."""

    def __call__(self, weights: Float[Tensor, "batch head ..."]) -> Float[Tensor, "batch ..."]:
        """Sums to between 1 and the number of heads over keys."""
        return weights.amax(1)

    def why_not(self, heads: int) -> str:
        """Never."""
        return ""


@dataclass(frozen=True)
class OneHead:
    """The head of this index, negative from the last, the same in every layer."""

    index: int

    def __call__(self, weights: Float[Tensor, "batch head ..."]) -> Float[Tensor, "batch ..."]:
        """That head's weights as they are."""
        return weights[:, self.index]

    def why_not(self, heads: int) -> str:
        """There is no such head."""
        return "" if -heads <= self.index < heads else f"it has heads 0 to {heads - 1}, not {self.index}"


@dataclass(frozen=True, kw_only=True)
class AttentionRow(AttentionTap):
    """The row of the position that is read: a reward model's pooled position, a policy's last prediction."""

    heads: Heads = MeanHeads()

    def why_not(self, layers: int, heads: int) -> str:
        """It lacks the layer or the head."""
        return super().why_not(layers, heads) or self.heads.why_not(heads)

    def rows(self, layout: Layout) -> Int[Tensor, "batch row"]:
        """One row per response."""
        return layout.read_positions[:, None]

    def reduce(
        self, weights: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], layout: Layout
    ) -> Float[Tensor, "batch response"]:
        """The weight on each response token, heads reduced."""
        return on_response(self.heads(weights).sum(1), layout)


@dataclass(frozen=True, kw_only=True)
class AttentionRowMean(ColumnTap):
    """For each response token, the mean over the rows that could see it of the weight they put on it.

    The row predicting token t sees tokens before t only, so token k of T is seen by T − k rows, or by as many of them
    as a sliding window reaches; the last by none (0).
    """

    def rows(self, layout: Layout) -> Int[Tensor, "batch row"]:
        """The rows that predict a response token."""
        return torch.where(layout.response_mask, layout.response_positions - 1, -1)

    def of_columns(self, weights: Float[Tensor, "batch head row column"]) -> Float[Tensor, "batch column"]:
        """Mean over heads of the weight on each token, summed over rows."""
        return weights.mean(1).sum(1)

    def finish(
        self, total: Float[Tensor, "batch response"], seen_by: Int[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        """The sum divided by how many rows could see the token."""
        return total / seen_by.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class ValueRow(ValueTap):
    """The same row, each weight times the 2-norm of the value vector that it weights, α‖v‖, head by head (after
    Kobayashi et al. 2020, "Attention is not only a weight", who take the norm after the output projection: that
    mixes channels by a matrix that every architecture keeps elsewhere, so it is left out here)."""

    heads: Heads = MeanHeads()

    def why_not(self, layers: int, heads: int) -> str:
        """It lacks the layer or the head."""
        return super().why_not(layers, heads) or self.heads.why_not(heads)

    def rows(self, layout: Layout) -> Int[Tensor, "batch row"]:
        """One row per response."""
        return layout.read_positions[:, None]

    def factors(self, values: Float[Tensor, "batch value_head key channel"]) -> Float[Tensor, "batch value_head key"]:
        """‖v‖ of each head."""
        norms: Tensor = torch.linalg.vector_norm(values, dim=-1)
        return norms

    def reduce(
        self, weights: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], layout: Layout
    ) -> Float[Tensor, "batch response"]:
        """The weighted norm on each response token, heads reduced."""
        return on_response(self.heads(weights).sum(1), layout)
