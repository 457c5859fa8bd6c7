"""Load-time check of a critic's trunk: a value may depend on what stands before its token, and on nothing else."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.passes.context_length import context_length
from models.passes.forward import response_hidden
from models.passes.layout import PaddedRows
from models.passes.length_switches import beside_switches, past_switches, within_reach
from models.passes.rounding import rounds_coarsely


@torch.no_grad()
def check_trunk(trunk: PreTrainedModel, vocab_size: int) -> int:
    """Compare states beside other rows with those alone, and with those of a row that ends otherwise; the size of a
    state. Rows lie on both sides of the switches that the config names (see :mod:`models.passes.length_switches`).

    Raises:
        ValueError: naming the architecture, and by how much the states differ (of their 2-norm).
    """
    for lengths in beside_switches(trunk, context_length(trunk)):
        size = _compare(trunk, lengths, vocab_size)
    with within_reach(trunk):
        _compare(trunk, past_switches(context_length(trunk)), vocab_size)
    return size


def _compare(trunk: PreTrainedModel, lengths: tuple[int, int], vocab_size: int) -> int:
    longer, shorter = ([(7 * i + 3 * row + 1) % vocab_size for i in range(n)] for row, n in enumerate(lengths))
    other_end = [*longer[:-1], (longer[-1] + 1) % vocab_size]
    together, before = _states(trunk, [longer, other_end, shorter]), len(longer) - 1
    _require_equal(trunk, "before a token move with that token", together[:before], together[before : 2 * before])
    alone = torch.cat([_states(trunk, [longer]), _states(trunk, [shorter])])
    _require_equal(
        trunk, "of a row move with the rows beside it", torch.cat([together[:before], together[2 * before :]]), alone
    )
    return together.shape[-1]


def _states(trunk: PreTrainedModel, ids: list[list[int]]) -> Tensor:
    """States that predict every token but the first of each row, row after row."""
    lengths = torch.tensor([len(row) for row in ids], device=trunk.device)
    width = int(lengths.max())
    columns = torch.arange(width, device=trunk.device)
    mask = columns < lengths[:, None]
    rows = PaddedRows(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in ids], device=trunk.device),
        attention_mask=mask,
        response_positions=columns[1:].expand(len(ids), -1),
        response_tokens=sum(map(len, ids)) - len(ids),
        longest=lengths,
    )
    return response_hidden(trunk, rows, mask[:, 1:]).float()


def _require_equal(trunk: PreTrainedModel, what: str, one: Tensor, other: Tensor) -> None:
    gap = float((one - other).norm() / one.norm().clamp(min=1e-6))
    if not gap <= (5e-2 if rounds_coarsely(trunk) else 1e-4):
        raise ValueError(f"{type(trunk).__name__} cannot be a critic: its states {what} (by {gap:.1e} of their 2-norm)")
