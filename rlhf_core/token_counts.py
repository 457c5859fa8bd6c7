"""How many tokens each row holds, as numbers that the host has: whoever reads them waits for no device.

A row's masks are checked in the same transfer that reads their counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenCounts:
    """Tokens of the ``prompt`` and the ``response`` of each row, on the CPU."""

    prompt: Int[Tensor, " batch"]
    response: Int[Tensor, " batch"]

    @property
    def total(self) -> Int[Tensor, " batch"]:
        """Tokens of each row, prompt and response."""
        return self.prompt + self.response

    def of(self, rows: Int[Tensor, " row"]) -> "TokenCounts":
        """The counts of these ``rows`` (on the CPU)."""
        return TokenCounts(prompt=self.prompt[rows], response=self.response[rows])


def checked_counts(tensors: Mapping[str, Tensor]) -> TokenCounts:
    """The counts of a batch, by the names that ``Sequences`` gives its tensors.

    Raises:
        ValueError: a mask with holes, padding on the wrong side, an empty prompt or response, or impossible lengths.
    """
    prompt, response = tensors["prompt_mask"], tensors["response_mask"]
    holes = [_holes(prompt.flip(1)), _holes(response)]
    limits = [tensors["min_lengths"], tensors["max_lengths"]]
    columns = [prompt.sum(1), response.sum(1), *holes, *limits]
    prompts, responses, *broken, low, high = torch.stack([column.long() for column in columns]).cpu()  # one transfer
    for rows, name, wanted in zip(
        broken, ("prompt_mask", "response_mask"), ("left-padded", "right-padded"), strict=True
    ):
        for row in rows.nonzero().flatten().tolist():
            raise ValueError(f"Sequences: row {row} of {name} is empty or not {wanted}: {tensors[name][row].tolist()}")
    for row in ((responses > high) | (low > high) | (low < 0)).nonzero().flatten().tolist():
        raise ValueError(
            f"Sequences: row {row} has {int(responses[row])} response tokens with "
            f"min_lengths {int(low[row])} and max_lengths {int(high[row])}"
        )
    return TokenCounts(prompt=prompts, response=responses)


def require_tensors(tensors: Mapping[str, object]) -> None:
    """Check kinds and shapes, which annotations promise and nothing else would check where no type checker runs.

    Raises:
        ValueError: no rows, or tensors of other shapes or kinds than ``Sequences`` names.
    """
    shapes: dict[str, tuple[int, ...]] = {
        part: tuple(getattr(tensors[f"{part}_ids"], "shape", ())) for part in ("prompt", "response")
    }
    rows = shapes["prompt"][:1]
    if len(shapes["prompt"]) != 2 or rows == (0,):
        raise ValueError(f"Sequences: prompt_ids must be at least one row of token ids, got shape {shapes['prompt']}")
    shapes["response"] = rows + shapes["response"][1:2]
    for name, tensor in tensors.items():
        shape = shapes.get(name.split("_")[0], rows)
        kind = "bool" if name.endswith("_mask") or name == "finished" else "int"
        if not isinstance(tensor, Tensor) or tensor.shape != shape or not _is(tensor, kind):
            got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
            raise ValueError(f"Sequences: {name} must be a tensor of kind {kind} and shape {shape}, got {got}")


def _is(tensor: Tensor, kind: str) -> bool:
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return tensor.dtype == torch.bool if kind == "bool" else whole and tensor.dtype != torch.bool


def _holes(mask: Bool[Tensor, "batch column"]) -> Bool[Tensor, " batch"]:
    """True where a row of ``mask`` is not a run of True followed by False, or is empty."""
    return (mask[:, 1:] & ~mask[:, :-1]).any(1) | ~mask.any(1)
