"""Rotary tables that depend only on a row's own length.

LongRoPE (Phi-3-128k, Phi-4-mini) and dynamic NTK choose their frequencies by the longest row of a batch, and by the
longest so far while sampling. A row's numbers then depend on the other rows, and cached keys use another table than the
query. Here each row uses, for all of its tokens, the table that its model would use for a text of that row's length.
For a policy's row this is the longest length it may reach (prompt and longest response), which is known before its
first token, so sampling and every later pass agree. A row that is only read uses its actual length.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

SWITCHES = ("original_max_position_embeddings", "max_position_embeddings")
Tables = tuple[Tensor, ...]

_growing: ContextVar[Tensor | None] = ContextVar("lengths that rows may grow to", default=None)


@contextmanager
def grows_to(lengths: Int[Tensor, " row"]) -> Iterator[None]:
    """Inside the block, the rows of every pass are treated as texts of these lengths."""
    token = _growing.set(lengths)
    try:
        yield
    finally:
        _growing.reset(token)


def read_rows_alone(model: nn.Module) -> None:
    """Give every rotary embedding whose table depends on a batch's longest row a table a row, in place.

    Parameters and the names in a state dictionary stay. Such embeddings are found by computing the same positions in
    texts of different lengths, not by name.

    Raises:
        ValueError: such an embedding in a module that does not see which tokens are real.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            switch = None if isinstance(parent, TableARow) else _switch(child)
            if switch is None:
                continue
            if "attention_mask" not in inspect.signature(parent.forward).parameters:
                raise ValueError(
                    f"{type(child).__name__}: this rotary position embedding changes with the longest row of a batch, "
                    f"and {type(parent).__name__} does not say how long each row is; set another rope_type in the "
                    "model's config.json, or use another model"
                )
            setattr(parent, name, TableARow(child, switch))
            parent.register_forward_pre_hook(_tell_lengths, with_kwargs=True)


def table_numbers(model: nn.Module, lengths: Int[Tensor, " row"]) -> Int[Tensor, "row embedding"]:
    """A number for each of the model's embeddings that :func:`read_rows_alone` changed; rows with equal numbers use the
    same tables in texts of these ``lengths``. Without such embeddings, no number at all."""
    kinds = [module.kinds(lengths) for module in model.modules() if isinstance(module, TableARow)]
    return torch.stack(kinds, dim=1) if kinds else lengths.new_zeros(len(lengths), 0)


@final
class TableARow(nn.Module):
    """A rotary embedding that is asked once for every length among the rows.

    ``switch``: the length up to which all texts have one table.
    """

    def __init__(self, inner: nn.Module, switch: int) -> None:
        super().__init__()
        self.inner, self.switch = inner, switch
        self.lengths: Tensor | None = None
        beyond, far = (_first_positions(inner, length) for length in (switch + 1, _far(switch)))
        # where there are two tables only, as in LongRoPE, all longer rows share one
        self.longest = switch + 1 if _same(beyond, far) else None

    def forward(self, x: Tensor, position_ids: Tensor, *others: Any, **named: Any) -> Tensor | Tables:
        """What ``inner`` gives each row beside nothing but a token at its last position."""
        ask = partial(self._tables, x, others, named)
        if self.lengths is None:  # rows of one length, without padding
            return _shaped(ask(position_ids, position_ids.max() + 1))
        lengths = self.lengths.to(position_ids)
        positions = position_ids.expand(*position_ids.shape[:-2], len(lengths), -1)
        positions = positions.minimum(lengths[:, None] - 1)  # what lies beyond is padding
        kinds = self.kinds(lengths)
        groups = [(kinds == length).nonzero()[:, 0] for length in torch.unique(kinds)]
        found = [ask(positions.index_select(-2, rows), kinds[rows[0]]) for rows in groups]
        back = torch.cat(groups).argsort()
        return _shaped([torch.cat(tables, -3).index_select(-3, back) for tables in zip(*found, strict=True)])

    def kinds(self, lengths: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Equal numbers for texts of lengths that share a table."""
        return lengths.clamp(self.switch, self.longest)

    def _tables(
        self, x: Tensor, others: tuple[Any, ...], named: dict[str, Any], positions: Tensor, length: Tensor
    ) -> list[Tensor]:
        """All rows as texts of one length."""
        self.inner(x, torch.zeros_like(positions), *others, **named)  # forget the longest text so far
        last = (length - 1).to(positions).expand_as(positions[..., :1])
        tables = self.inner(x, torch.cat([positions, last], dim=-1), *others, **named)
        return [table[..., :-1, :] for table in _listed(tables)]


def _listed(tables: Any) -> list[Tensor]:
    """Cosines and sines, or both as one table of complex numbers."""
    return [tables] if isinstance(tables, Tensor) else list(tables)


def _shaped(tables: list[Tensor]) -> Tensor | Tables:
    return tables[0] if len(tables) == 1 else tuple(tables)


def _tell_lengths(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Before a pass: the lengths that a policy set, else those in the mask."""
    lengths = _growing.get()
    if lengths is None:
        mask = inspect.signature(module.forward).bind_partial(*arguments, **named).arguments.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise ValueError(
                f"{type(module).__name__} has one rotary table per row and needs to know how long each row is: give an "
                "attention_mask of shape (row, position), or none for rows without padding"
            )
        lengths = None if mask is None else mask.sum(1)
    for child in module.children():
        if isinstance(child, TableARow):
            child.lengths = lengths


def _switch(module: nn.Module) -> int | None:
    """The length from which a rotary embedding's table depends on the longest row; None for one that never does, and
    for every other module."""
    config = getattr(module, "config", None)
    if config is None or not {"x", "position_ids"} <= inspect.signature(module.forward).parameters.keys():
        return None
    named = sorted(_switches(config.to_dict()))
    if not named or _same(_first_positions(module, 1), _first_positions(module, _far(named[-1]))):
        return None
    return named[0]


def _switches(settings: Any) -> set[int]:
    """Lengths that a configuration names, at any depth."""
    if not isinstance(settings, Mapping):
        return set()
    here = {value for name in SWITCHES if isinstance(value := settings.get(name), int)}
    return here.union(*map(_switches, settings.values()))


def _far(switch: int) -> int:
    return 4 * switch


@torch.no_grad()
def _first_positions(module: nn.Module, length: int) -> list[Tensor]:
    """Its tables of positions 0 to 7 in a text of some length, for every type of layer it knows."""
    module = copy.deepcopy(module)  # it may keep the longest text so far
    device = next((buffer.device for buffer in module.buffers()), torch.device("cpu"))
    positions = torch.cat([torch.arange(8, device=device), torch.tensor([max(length, 8) - 1], device=device)])[None]
    kinds = getattr(module, "rope_type", None)
    takes_kind = "layer_type" in inspect.signature(module.forward).parameters and isinstance(kinds, Mapping)
    found: list[Tensor] = []
    forward: Callable[..., Any] = module
    for kind in kinds if takes_kind and kinds is not None else [None]:
        tables = forward(torch.zeros(1, 1, device=device), positions, *([] if kind is None else [kind]))
        found += [table[..., :8, :] for table in _listed(tables)]
    return found


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
