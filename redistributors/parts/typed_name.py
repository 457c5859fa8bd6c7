"""The words that a user types for a method on the command line."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any


def as_typed(method: Any) -> str:
    """A method as it is typed on the command line: its name, and in brackets the settings that differ from those of the
    name, such as ``abc`` or ``abc(beta=0.5)``. A method that has no name is written as Python writes it."""
    found = _name_and_changes(method)
    return _called(*found) if found else repr(method)


def _name_and_changes(method: object) -> tuple[str, Mapping[str, Any]] | None:
    """A method's name in the registry, and the settings that differ from those of the name; None if the registry does
    not hold its class. Where several names do, the one with the fewest differences."""
    from redistributors.registry import REDISTRIBUTORS  # which imports every method, and so this file

    new = {name: make() for name, make in REDISTRIBUTORS.items()}
    found = [(name, _changes(method, one)) for name, one in new.items() if type(one) is type(method)]
    return min(found, key=lambda one: len(one[1]), default=None)


def _changes(made: Any, new: Any) -> dict[str, Any]:
    """The settings of a dataclass that are not those of ``new``, an instance of the same class."""
    given = {one.name: getattr(made, one.name) for one in fields(made) if one.init}
    return {name: value for name, value in given.items() if value != getattr(new, name)}


def _called(name: str, settings: Mapping[str, Any]) -> str:
    return f"{name}({_listed(settings)})" if settings else name


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    """A method by its name, another object by its class, all else as YAML reads it, and what is none of these as Python
    writes it."""
    if found := _name_and_changes(value):
        return _called(*found)
    with suppress(TypeError):  # a class that cannot be called without arguments, or what JSON lacks
        if is_dataclass(value):
            kind: Any = type(value)
            return f"{kind.__name__}({_listed(_changes(value, kind()))})"
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
