"""Describe anything that determines a run's numbers, with the same words in every process that builds it the same
way."""

import dis
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

LONGEST_DESCRIPTION = 4000
"""Characters of a description that are written down; of a longer one the beginning and a hash."""
PLAIN_VALUES = (
    *(type(None), bool, int, float, complex, str, range, torch.dtype, torch.device, re.Pattern),
    *(date, time, timedelta, Decimal),
)
MAY_HAVE_LEARNED = (list, dict, set, Tensor, np.ndarray, torch.nn.Module, torch.Generator, np.random.Generator)
SECRET = re.compile(r"key$|token$|secret|password|credential", re.IGNORECASE)


@runtime_checkable
class HasIdentity(Protocol):
    """A model, or anything else, that itself names the settings that determine its numbers, besides its weights."""

    @property
    def identity(self) -> Mapping[str, object]:
        """Settings by name; values of any kind that ``described`` can describe."""
        ...


def described(value: object) -> str:
    """Like ``repr``, but equal exactly for equal values. A tensor is described by all of its elements, a function by
    its name, defaults and closure, a lambda by its code too, an object by its class and settings.

    Settings are what ``identity`` names; of a dataclass what its ``__init__`` takes; of another object the attributes
    that bear the names of what its ``__init__`` takes, or where one is missing those that cannot have learned anything
    since. Attributes named like a key, token, secret, password or credential are never read.
    """
    words = _described(value, ())
    return words if len(words) <= LONGEST_DESCRIPTION else f"{words[:200]} ... (sha256 {_hash(words.encode())})"


def code_of(value: object) -> str:
    """A hash of the code of a function, or of what makes an object callable; empty if there is none to see. Comments
    and the function's docstring do not count."""
    if isinstance(value, partial | MethodType):
        return code_of(value.func if isinstance(value, partial) else value.__func__)
    function = value if isinstance(value, FunctionType) else getattr(type(value), "__call__", None)  # noqa: B004
    if not isinstance(function, FunctionType):
        return ""
    return _hash("".join(_code(function.__code__, function.__doc__)).encode())


def _described(value: object, outer: tuple[int, ...]) -> str:
    if isinstance(value, PLAIN_VALUES) and not isinstance(value, Enum):
        return repr(value)
    if id(value) in outer:
        return f"{type(value).__qualname__}(...)"
    inside = (*outer, id(value))
    for kinds, words in WORDS:
        if isinstance(value, kinds):
            return str(words(value, inside))
    return f"{type(value).__qualname__}({_listed(_settings(value, nested=len(outer) > 1), inside)})"


def _settings(value: object, *, nested: bool) -> Mapping[str, object]:
    if isinstance(value, HasIdentity) and isinstance(value.identity, Mapping):
        return value.identity
    if not isinstance(type(value).__init__, FunctionType):
        return {}
    held: dict[str, object] = getattr(value, "__dict__", {})
    taken = [*inspect.signature(type(value).__init__).parameters][1:]
    if is_dataclass(value) and {*taken} <= {field.name for field in fields(value)}:
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    named = {name: held.get(name, held.get(f"_{name}")) for name in taken if {name, f"_{name}"} & held.keys()}
    if nested or len(named) == len(taken):
        return named if len(named) == len(taken) else {}
    return {name: item for name, item in held.items() if not isinstance(item, MAY_HAVE_LEARNED)}


def _listed(values: Mapping[str, object], inside: tuple[int, ...]) -> str:
    shown = {name: value for name, value in values.items() if not SECRET.search(name)}
    return ", ".join(f"{name}={_described(value, inside)}" for name, value in shown.items())


def _sequence(values: Any, inside: tuple[int, ...]) -> str:
    shown = ", ".join(_described(value, inside) for value in values)
    if isinstance(values, list):
        return f"[{shown}]"
    return f"({shown},)" if len(values) == 1 else f"({shown})"


def _set(values: Any, inside: tuple[int, ...]) -> str:
    return f"{type(values).__name__}({{{', '.join(sorted(_described(value, inside) for value in values))}}})"


def _mapping(values: Any, inside: tuple[int, ...]) -> str:
    shown = {name: value for name, value in values.items() if not SECRET.search(str(name))}
    return f"{{{', '.join(f'{_described(name, inside)}: {_described(shown[name], inside)}' for name in shown)}}}"


def _array(value: Any, _: tuple[int, ...]) -> str:
    kind, shape = value.dtype, tuple(value.shape)
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"tensor({kind}, {shape}, sha256 {_hash(value.tobytes())})"


def _partial(value: Any, inside: tuple[int, ...]) -> str:
    return f"partial({_described((value.func, *value.args), inside)}, {_mapping(value.keywords, inside)})"


def _function(function: FunctionType, inside: tuple[int, ...]) -> str:
    """A function's defaults, and the variables it closes over, unless it rebinds them or can store state in them."""
    code, given = function.__code__, inspect.signature(function).parameters.values()
    made_with = {each.name: each.default for each in given if each.default is not each.empty}
    rebound = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell: a name that is not bound yet
            if name not in rebound and not isinstance(cell.cell_contents, MAY_HAVE_LEARNED):
                made_with[name] = cell.cell_contents
    name = f"lambda {code_of(function)}" if function.__name__ == "<lambda>" else function.__qualname__
    settings = _listed(made_with, inside)
    return f"{name}({settings})" if settings else name


def _code(code: CodeType, documentation: str | None) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant, None)
        elif constant is None or constant != documentation:
            yield _described(constant, ())


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


WORDS: tuple[tuple[Any, Any], ...] = (
    (Enum, lambda value, _: f"{type(value).__qualname__}.{value.name}"),
    (type, lambda value, _: value.__qualname__),
    (bytes, lambda value, _: f"bytes(sha256 {_hash(value)})"),
    ((Tensor, np.ndarray), _array),
    (np.generic, lambda value, inside: _described(value.item(), inside)),
    ((tuple, list), _sequence),
    ((set, frozenset), _set),
    (Mapping, _mapping),
    (partial, _partial),
    (FunctionType, _function),
    (MethodType, lambda value, inside: f"{_described(value.__self__, inside)}.{value.__name__}"),
    (BuiltinFunctionType, lambda value, _: value.__qualname__),
)
