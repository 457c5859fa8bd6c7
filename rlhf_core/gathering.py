"""The whole rollout in every process, from the parts that each of them measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_core.distributed import count, gathered
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import TENSORS, Rollout, Row, Sequences

PER_TOKEN = ("logprobs", "ref_logprobs", "values", "kl")


def gathered_rollout(
    own_part: Callable[[], Rollout | None], given: Sequence[Row], needs: frozenset[EvidenceRequest], home: torch.device
) -> Rollout:
    """One rollout of every process's ``own_part`` (None where it has no rows), by rank, on the device ``home``, with
    raw scores; ``given`` belongs to all rows. Raises what a part raises in one process in all of them.

    ``needs`` are the evidence of every part. They name it where its tensors travel: a request that a user's script
    defines may not be sent itself.
    """
    if count() == 1:
        part = own_part()
        assert part is not None  # one process has all the rows
        return part
    requests = sorted(needs, key=repr)
    parts = [part for part in gathered(lambda: _packed(own_part(), requests)) if part]
    sequences = Sequences.concatenate([_sequences(part, home) for part in parts])
    width = sequences.response_ids.shape[1]

    def together(name: str, columns: Sequence[int] = (width,)) -> Tensor:
        return torch.cat([_widened(part[name], columns) for part in parts]).to(home)

    raw_scores = together("raw_scores", ())
    return Rollout(
        sequences=replace(sequences, given=tuple(given)),
        **{name: together(name) for name in PER_TOKEN},
        raw_scores=raw_scores,
        scores=raw_scores,
        score_scale=1.0,
        evidence={
            request: together(_place(place), request.shape(1, width)[1:2]) for place, request in enumerate(requests)
        },
    )


def _packed(part: Rollout | None, requests: Sequence[EvidenceRequest]) -> Mapping[str, Tensor]:
    """Its tensors, on the CPU; nothing for no rows."""
    if part is None:
        return {}
    found = {name: getattr(part.sequences, name) for name in TENSORS}
    found |= {name: getattr(part, name) for name in (*PER_TOKEN, "raw_scores")}
    found |= {_place(place): part.evidence[request] for place, request in enumerate(requests)}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _sequences(part: Mapping[str, Any], home: torch.device) -> Sequences:
    return Sequences(**{name: part[name].to(home) for name in TENSORS})


def _place(place: int) -> str:
    return f"evidence {place}"


def _widened(tensor: Tensor, columns: Sequence[int]) -> Tensor:
    """Zeros appended along the second axis, to so many columns, where there is such an axis."""
    if not columns:
        return tensor
    return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, columns[0] - tensor.shape[1]))
