"""A fingerprint of a function's code, so that a run is not continued with a function that has changed."""

import re
import types
from collections.abc import Iterator
from functools import partial

from benchmarks.base.json_files import fingerprint
from rlhf_core.run.description import code_of, described

FIXED = (bool, int, float, str, tuple, frozenset, re.Pattern, type(None))
"""Values of a module that count where a function names them: none that could have learned anything since."""


def code_fingerprint(fn: object) -> str:
    """Hash of the code of ``fn`` (a function, or an object that is called) and of what it uses of its own module:
    functions, classes and fixed values. Comments and docstrings do not count; neither do files that it reads, nor other
    modules."""
    parts, waiting, seen = [described(fn)], [fn], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        for function in _functions(one):
            parts.append(code_of(function))
            for name, value in _used(function):
                if isinstance(value, FIXED):
                    parts.append(f"{name}={described(value)}")
                elif getattr(value, "__module__", None) == function.__module__:
                    waiting.append(value)
    return fingerprint(parts)[:16]


def _functions(value: object) -> Iterator[types.FunctionType]:
    """The functions that run where ``value`` is called."""
    if isinstance(value, partial | types.MethodType):
        yield from _functions(value.func if isinstance(value, partial) else value.__func__)
    elif isinstance(value, types.FunctionType):
        yield value
    else:
        kind = value if isinstance(value, type) else type(value)
        held = {**vars(kind), **(getattr(value, "__dict__", {}) if value is not kind else {})}
        yield from (each for _, each in sorted(held.items()) if isinstance(each, types.FunctionType))


def _used(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Names of its module and of what it closes over that a function's code mentions, with their values."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    names = sorted({name for code in codes for name in code.co_names} & function.__globals__.keys())
    yield from ((name, function.__globals__[name]) for name in names)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != types.CellType():  # an empty one: a name that is not bound yet
            yield name, cell.cell_contents
