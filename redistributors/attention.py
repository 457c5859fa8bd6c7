"""Evidence read off attention rows: the requests of ABC, ABC-D and ABC-D2.

Both average over heads and keep the columns of the response only; nothing is renormalised here.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import AttentionTap, Layout


@dataclass(frozen=True, kw_only=True)
class AttentionRow(AttentionTap):
    """The row of the position that is read: a reward model's pooled position, a policy's last prediction."""

    def rows(self, layout: Layout) -> Int[Tensor, "batch row"]:
        """One row a response."""
        return layout.read_positions[:, None]

    def reduce(
        self, weights: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], layout: Layout
    ) -> Float[Tensor, "batch response"]:
        """Mean over heads of the weight on each response token."""
        return _on_response(weights.mean(1).sum(1), layout)


@dataclass(frozen=True, kw_only=True)
class AttentionRowMean(AttentionTap):
    """For each response token, the mean over the rows that could see it of the weight they put on it.

    The row predicting token t sees tokens before t only, so token k of T is seen by T − k rows, or by as many of them
    as a sliding window reaches; the last by none (0).
    """

    def rows(self, layout: Layout) -> Int[Tensor, "batch row"]:
        """The rows that predict a response token."""
        return torch.where(layout.response_mask, layout.response_positions - 1, -1)

    def reduce(
        self, weights: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], layout: Layout
    ) -> Float[Tensor, "batch response"]:
        """Mean over heads of the weight on each response token, summed over rows."""
        return _on_response(weights.mean(1).sum(1), layout)

    def finish(
        self, total: Float[Tensor, "batch response"], seen_by: Int[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        """The sum divided by how many rows could see the token."""
        return total / seen_by.clamp(min=1)


def _on_response(weights: Float[Tensor, "batch key"], layout: Layout) -> Float[Tensor, "batch response"]:
    return torch.where(layout.response_mask, weights.gather(1, layout.response_positions), 0)
