"""Call the caller's reward function with prompts, responses and, by name, the columns of the rows that it asks for.

A wrong signature is reported before anything is loaded, and a missing column before anything is generated. The result
is checked here.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from inspect import Parameter
from reprlib import repr as shortened
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.names import counted, nearest
from rlhf_core.types import Row

RewardFunction = Callable[..., Any]
"""``fn(prompts, responses, ...)``, with columns of the rows by name: each has one entry a response, as ``prompts`` and
``responses`` have."""
PLACES = {"prompts": 0, "responses": 1, "completions": 1}
"""Names that say what stands in a place, so that they are wrong in another."""

PLACED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@runtime_checkable
class HasFunction(Protocol):
    """A reward made of a function."""

    @property
    def fn(self) -> RewardFunction:
        """The caller's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a function takes: the names of its first two parameters, those that it takes by name (whether it must have
    them), and whether it takes any other."""

    first: tuple[str, ...]
    named: dict[str, bool]
    any_name: bool


def require_signature(fn: RewardFunction) -> None:
    """Raise TypeError, showing the right signature, for what cannot be called with prompts, responses and columns by
    name. What does not say what it takes, as some functions in C, is let through."""
    if not callable(fn):
        raise TypeError(f"a reward function must be callable, got {fn!r}")
    parameters = _parameters(fn)
    if parameters is None:
        return
    placed = [each for each in parameters if each.kind in PLACED]
    further = any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)
    wrong = [each.name for place, each in enumerate(parameters) if PLACES.get(each.name, place) != place]
    wrong += [each.name for each in placed[2:] if each.kind is Parameter.POSITIONAL_ONLY and _required(each)]
    if wrong or (len(placed) < 2 and not further):
        name = _name(fn)
        raise TypeError(
            "a reward function is given prompts and responses, one after the other, and by name the columns of the "
            f"rows that it asks for, but {name} is {name}{inspect.signature(fn)}. Write def {name}(prompts, "
            f"responses): ..., or, where rows have 'answer', def {name}(prompts, responses, answer): ..."
        )


def require_columns(fn: RewardFunction, names: Collection[str]) -> None:
    """Raise ValueError for a column that ``fn`` asks for and is not among ``names``; or for one whose name its first
    two parameters bear, which are prompts and responses."""
    taken, name = _taken(fn), _name(fn)
    swallowed = [each for each in taken.first if each in names and each not in PLACES]
    if swallowed:
        raise ValueError(
            f"reward {name}{inspect.signature(fn)} has the name of a column, {swallowed[0]!r}, among its first two "
            f"parameters, which are the prompts and the responses: write def {name}(prompts, responses, "
            f"{', '.join(swallowed)}): ..."
        )
    missing = [each for each, required in taken.named.items() if required and each not in names]
    if missing:
        there = f"they have {', '.join(map(repr, sorted(names))) or 'none'}"
        raise ValueError(
            f"reward {name}{inspect.signature(fn)} asks for the column {missing[0]!r}, which the prompts do not have: "
            f"{there}{nearest(missing[0], names) or '.'} Give rows, [{{'prompt': ..., {missing[0]!r}: ...}}, ...], or "
            f"write def {name}(prompts, responses): ..."
        )


def validate_columns(reward: HasFunction, names: Collection[str]) -> None:
    """Raise ValueError for a column that the function asks for and the prompts' rows do not have."""
    require_columns(reward.fn, names)


def scores_of(
    fn: RewardFunction, prompts: list[Any], responses: list[Any], rows: Sequence[Row]
) -> Float[Tensor, " row"]:
    """The function's score of each response, as float32 on the CPU.

    Raises:
        ValueError: a column is missing, or the answer is not one number for each response.
    """
    scores = _answer(fn, prompts, responses, rows)
    try:
        given = torch.as_tensor(scores) if isinstance(scores, Tensor | np.ndarray) else scores
        if isinstance(given, Tensor) and (given.is_complex() or given.layout != torch.strided):
            raise TypeError("complex and sparse tensors cannot be read as scores")
        values = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"reward {_name(fn)} must return a number for each of the {len(responses)} responses, "
            f"got {shortened(scores)}"
        ) from error
    if values.shape != (len(responses),):
        raise ValueError(
            f"reward {_name(fn)} returned scores of shape {tuple(values.shape)} for "
            f"{counted(len(responses), 'response')}"
        )
    return values


def lists_of(fn: RewardFunction, prompts: list[Any], responses: list[Any], rows: Sequence[Row]) -> list[Any]:
    """What the function gives for each response: a list of something.

    Raises:
        ValueError: a column is missing, or the answer is not one list for each response.
    """
    given = _answer(fn, prompts, responses, rows)
    if not hasattr(given, "__len__") or isinstance(given, str | dict) or len(given) != len(responses):
        raise ValueError(
            f"reward {_name(fn)} must return one list for each of the {len(responses)} responses, "
            f"got {shortened(given)}"
        )
    return list(given)


def _answer(fn: RewardFunction, prompts: list[Any], responses: list[Any], rows: Sequence[Row]) -> Any:
    """``rows`` are those of the responses, or none at all."""
    names = [name for name in (rows[0] if rows else ()) if name != "prompt"]
    require_columns(fn, names)
    taken = _taken(fn)
    asked = [name for name in names if name in taken.named or (taken.any_name and name not in PLACES)]
    return fn(prompts, responses, **{name: [row[name] for row in rows] for name in asked})


def _taken(fn: RewardFunction) -> Taken:
    parameters = _parameters(fn) or []
    placed = [each for each in parameters if each.kind in PLACED]
    by_name = [each for each in placed[2:] if each.kind is not Parameter.POSITIONAL_ONLY]
    by_name += [each for each in parameters if each.kind is Parameter.KEYWORD_ONLY]
    return Taken(
        first=tuple(each.name for each in placed[:2]),
        named={each.name: _required(each) for each in by_name},
        any_name=any(each.kind is Parameter.VAR_KEYWORD for each in parameters),
    )


def _required(parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty


def _parameters(fn: RewardFunction) -> list[Parameter] | None:
    """None for a function in C that does not say."""
    try:
        return [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        return None


def _name(fn: RewardFunction) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    return name if name.isidentifier() else "reward"
