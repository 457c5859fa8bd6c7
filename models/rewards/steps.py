"""Steps of a response: where they end in its text, and what each of them earns of the response's score."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Aggregate = Literal["sum", "mean", "min", "last"]
"""How the scores of a response's steps make the score of the response."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The text of a step, and the number of characters of the response up to the end of its separator, or to the end
    of the response where the last step has none."""

    text: str
    end: int
    separated: bool


def cut_steps(text: str, separator: str) -> Iterator[Step]:
    """The steps that ``separator`` parts, without it, each as it was written. What is blank is no step."""
    *before, last = text.split(separator)
    end = 0
    for piece in before:
        end += len(piece) + len(separator)
        if piece.strip():
            yield Step(text=piece, end=end, separated=True)
    if last.strip():
        yield Step(text=last, end=len(text), separated=False)


def _of_the_lowest(scores: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    earned = torch.zeros_like(scores)
    earned[scores.argmin()] = scores.min()
    return earned


EARNED: Mapping[Aggregate, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores,
    "mean": lambda scores: scores / len(scores),
    "min": _of_the_lowest,
    "last": lambda scores: scores.diff(prepend=scores.new_zeros(1)),
}
"""What each step earns, from the scores s_1, ..., s_n of one or more steps; it sums to the response's score.

- "sum": step k earns s_k (Lightman et al. 2024, "Let's verify step by step"). More steps earn more where s_k > 0.
- "mean": step k earns s_k / n.
- "min": the first of the lowest earns its score, the others nothing (Cheng et al. 2025, "Stop summation", PURE).
- "last": step k earns s_k − s_{k−1}, with s_0 = 0: how far it moved the score, which ends at s_n.
"""
