"""The runtime checker of the tests: an int is a float, as PEP 484 has it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_made: dict[Any, Callable[..., Any]] = {}


def checker(stub: Callable[..., Any]) -> Callable[..., Any]:
    """The check of ``stub``, which jaxtyping makes of a signature alone: its body is empty.

    A function inside a function is defined, and its check asked for, with every call of the outer one. Making a check
    takes milliseconds, so one made before for the same signature is handed out again.
    """
    key = (stub.__module__, stub.__qualname__, stub.__code__, tuple(stub.__annotations__.items()))
    try:
        return _made[key]
    except KeyError:
        return _made.setdefault(key, _checked(stub))
    except TypeError:  # an annotation without a hash
        return _checked(stub)
