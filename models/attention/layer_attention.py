"""The attention of one layer in one pass, in one of two forms: its projections, or its whole map."""

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

EVERY_KEY = slice(None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Projections:
    """Queries, keys and values as the attention function got them, position encoding applied.

    ``mask``: boolean (True = may attend) or additive, broadcastable to (batch, head, query, key), or None, and then
    ``causal`` decides. Fewer key and value heads than query heads are shared by consecutive query heads.
    ``log_totals``: the logarithm of every row's softmax denominator, where the kernel that ran gives it without a mask.
    """

    query: Float[Tensor, "batch head query channel"]
    key: Float[Tensor, "batch key_head key channel"]
    value: Float[Tensor, "batch key_head key value_channel"]
    scaling: float
    mask: Tensor | None
    causal: bool
    log_totals: Float[Tensor, "batch head query"] | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes of the full map, which is never computed."""
        return (*self.query.shape[:3], self.key.shape[2])

    @cached_property
    def _float_key(self) -> Tensor:
        return self.key.float().contiguous()  # or every chunk of rows would copy it for its matrix product

    def weights(self, rows: Int[Tensor, "batch row"], keys: slice = EVERY_KEY) -> Float[Tensor, "batch head row key"]:
        """softmax(scaling · q kᵀ + mask) of the given query columns, in float32, on the keys asked for.

        With ``log_totals`` no other key is looked at."""
        if self.log_totals is None:
            return self._masked(self._logits(rows, EVERY_KEY), rows).softmax(-1)[..., keys]
        weights = self._logits(rows, keys).sub_(_query_rows(self.log_totals[..., None], rows)).exp_()
        return self._fill_future(weights, rows, keys, 0.0)  # exp of what is far below 0 is slow

    def _logits(self, rows: Int[Tensor, "batch row"], keys: slice) -> Float[Tensor, "batch head row key"]:
        query, key = _query_rows(self.query, rows).float() * self.scaling, self._float_key[:, :, keys]
        grouped = "batch (key_head group) row channel -> batch key_head (group row) channel"
        query = rearrange(query, grouped, key_head=key.shape[1])
        logits = query @ rearrange(key, "batch key_head key channel -> batch key_head channel key")
        apart = "batch key_head (group row) key -> batch (key_head group) row key"
        of_head: Tensor = rearrange(logits, apart, row=rows.shape[1])
        return of_head

    def _masked(
        self, logits: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"]
    ) -> Float[Tensor, "batch head row key"]:
        lowest = torch.finfo(logits.dtype).min
        if self.mask is None:
            return self._fill_future(logits, rows, EVERY_KEY, lowest)
        mask = self._mask_rows(self.mask, rows)
        return logits.masked_fill_(~mask, lowest) if mask.dtype == torch.bool else logits.add_(mask)

    def _fill_future(
        self, of: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], keys: slice, value: float
    ) -> Float[Tensor, "batch head row key"]:
        """Write ``value``, in place, wherever causality hides a key."""
        if self.causal:
            columns = torch.arange(self.key.shape[2], device=rows.device)[keys]
            seen_by_all = int((columns <= rows.min()).sum())
            of[..., seen_by_all:].masked_fill_(columns[seen_by_all:] > rows[:, None, :, None], value)
        return of

    def reach(self, rows: Int[Tensor, "batch row"]) -> int:
        """How many keys, from the first on, the given query columns look at together."""
        keys = self.key.shape[2]
        return min(keys, int(rows.max()) + 1) if self.mask is None and self.causal else keys

    def seen_by(self, rows: Int[Tensor, "batch row"], wanted: Bool[Tensor, "batch row"]) -> Int[Tensor, "batch key"]:
        """How many of the wanted query columns may attend to each key, in any head."""
        keys = self.key.shape[2]
        if self.mask is None:
            if not self.causal:
                return wanted.sum(1, keepdim=True).expand(-1, keys)
            ending = torch.zeros(len(rows), keys, dtype=torch.long, device=rows.device)
            return ending.scatter_add_(1, rows, wanted.long()).flip(1).cumsum(1).flip(1)
        mask = self._mask_rows(self.mask, rows)
        # an additive mask may hold a bias (ALiBi), which is nowhere near what it adds to a key that is out of sight
        visible = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(1)
        return (visible & wanted[..., None]).sum(1)

    def _mask_rows(self, mask: Tensor, rows: Int[Tensor, "batch row"]) -> Tensor:
        return _query_rows(mask.expand(rows.shape[0], -1, self.query.shape[2], -1), rows)


@dataclass(frozen=True, eq=False)
class Map:
    """A layer's whole map, for a model that always computes it."""

    map: Float[Tensor, "batch head query key"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes of the map."""
        batch, head, query, key = self.map.shape
        return batch, head, query, key

    def weights(self, rows: Int[Tensor, "batch row"], keys: slice = EVERY_KEY) -> Float[Tensor, "batch head row key"]:
        """The given query columns of the map, on the keys asked for."""
        return _query_rows(self.map[..., keys], rows).float()

    def reach(self, rows: Int[Tensor, "batch row"]) -> int:
        """Every key, because a map does not show which keys were masked."""
        return self.map.shape[3]

    def seen_by(self, rows: Int[Tensor, "batch row"], wanted: Bool[Tensor, "batch row"]) -> Int[Tensor, "batch key"]:
        """How many of the wanted query columns attend to each key, in any head: a map does not show its mask."""
        return ((_query_rows(self.map, rows) > 0).any(1) & wanted[..., None]).sum(1)


LayerAttention = Projections | Map


def _query_rows(tensor: Tensor, rows: Int[Tensor, "batch row"]) -> Tensor:
    """Pick query columns of a (batch, head, query, anything) tensor."""
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None]
    picked: Tensor = rearrange(tensor[batch, :, rows], "batch row head ... -> batch head row ...")
    return picked
