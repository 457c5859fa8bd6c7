"""Whether a value is what a setting's annotation says, in words."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

ACCEPTED: Mapping[type, tuple[Any, str]] = {
    float: (int | float, "a number"),
    int: (int, "an integer"),
    bool: (bool, "True or False"),
    NoneType: (NoneType, "None"),
}


def choices(kind: Any) -> tuple[str, ...]:
    """The words that a ``Literal`` admits; none of any other annotation."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def misfit(value: object, kind: Any) -> str:
    """What a setting annotated as ``kind`` must be, in words; empty where ``value`` is that. An int is a number, a bool
    is none."""
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        found = [misfit(value, part) for part in parts]
        return " or ".join(found) if all(found) else ""
    if get_origin(kind) is Literal:
        return "" if value in parts else f"one of {', '.join(parts)}"
    if get_origin(kind) is tuple:
        pair = isinstance(value, tuple) and len(value) == len(parts) and not any(map(misfit, value, parts))
        return "" if pair else "a pair of integers (low, high)"
    accepted, words = ACCEPTED.get(kind, (kind, f"a {kind.__name__}"))
    return "" if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)) else words
