"""From sequences to the rows a model is given: prompt and response side by side, padding on the right only.

Left padding would move absolute positions and need position ids that some models ignore; with padding on the right a
causal model never sees it, so a response is the same alone and in any batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.evidence import Layout
from rlhf_core.types import Sequences


@dataclass(frozen=True, eq=False, kw_only=True)
class PaddedRows:
    """Model input of a batch; ``input_ids`` are 0 on padding, a token every vocabulary has."""

    input_ids: Int[Tensor, "batch position"]
    attention_mask: Bool[Tensor, "batch position"]
    response_positions: Int[Tensor, "batch response"]
    response_tokens: int
    """Of all rows together."""
    longest: Int[Tensor, " batch"]
    """How long each row may grow, for models that read a text by its length (see :mod:`models.passes.rotary`)."""


def right_padded(sequences: Sequences) -> PaddedRows:
    """Prompt then response from column 0 on, each row without inner padding."""
    prompt_lengths, response_lengths = sequences.prompt_lengths, sequences.response_lengths
    lengths = prompt_lengths + response_lengths
    ids = torch.cat([sequences.prompt_ids, sequences.response_ids], dim=1)
    left_padding = sequences.prompt_ids.shape[1] - prompt_lengths
    columns = torch.arange(int(sequences.counts.total.max()), device=ids.device)
    attention_mask = columns < lengths[:, None]
    gathered = ids.gather(1, (columns + left_padding[:, None]).clamp(max=ids.shape[1] - 1))
    steps = torch.arange(sequences.response_ids.shape[1], device=ids.device)
    return PaddedRows(
        input_ids=torch.where(attention_mask, gathered, 0),
        attention_mask=attention_mask,
        response_positions=torch.where(sequences.response_mask, prompt_lengths[:, None] + steps, 0),
        response_tokens=int(sequences.counts.response.sum()),
        longest=prompt_lengths + sequences.max_lengths,
    )


def policy_layout(rows: PaddedRows, sequences: Sequences) -> Layout:
    """A policy's layout: the column of interest is the one that predicts the last response token."""
    return Layout(
        response_positions=rows.response_positions,
        response_mask=sequences.response_mask,
        read_positions=rows.attention_mask.sum(1) - 2,
    )


def onto_responses(
    flat: Float[Tensor, " token"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Put one number per response token where the token stands, 0 elsewhere."""
    places = token_places(mask, len(flat))
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).index_put(places, flat)


def token_places(mask: Bool[Tensor, "batch response"], tokens: int) -> tuple[Tensor, Tensor]:
    """Row and column of each of the ``tokens`` that the mask selects; no host waits, as their number is given."""
    rows, columns = torch.nonzero_static(mask, size=tokens).unbind(1)
    return rows, columns
