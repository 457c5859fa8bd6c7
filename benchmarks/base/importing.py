"""Objects of the user's own modules by name: ``module:function`` or ``module.function``."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_core.names import nearest

_WORD = r"[^\W\d]\w*"
NAME = re.compile(rf"{_WORD}(\.{_WORD})*[.:]{_WORD}(\.{_WORD})*")


def is_name(text: str) -> bool:
    """Whether ``text`` reads as the name of an object in a module, and no file or folder bears it."""
    return NAME.fullmatch(text) is not None and not Path(text).exists()


def imported(name: str) -> Any:
    """The object of that name. Its module is looked for where Python looks, then in the folder the command was started
    in. Importing runs the module: name only modules you trust.

    Raises:
        ValueError: the module cannot be imported, or has nothing of that name; names the nearest.
    """
    module, _, path = name.partition(":") if ":" in name else name.rpartition(".")
    if not module or not path:
        raise ValueError(f"cannot read {name!r}; write module:function")
    found: Any = imported_module(module)
    for part in path.split("."):
        if not hasattr(found, part):
            where = getattr(found, "__file__", None) or f"{found!r}"
            raise ValueError(f"{module} ({where}) has no {part!r}{nearest(part, vars(found))}")
        found = getattr(found, part)
    return found


def imported_module(module: str) -> ModuleType:
    """The module of that name, looked for as :func:`imported` says.

    Raises:
        ValueError: it cannot be imported; says what it raised, or where it should lie.
    """
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):  # a console script does not look there, and worker processes copy this path
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except Exception as error:  # a module may raise anything while it is imported
        raised = f"{module} cannot be imported ({type(error).__name__}: {error})"
        if not isinstance(error, ModuleNotFoundError):
            raise ValueError(raised) from error
        raise ValueError(f"{raised}; start from the folder that holds it, or name that folder in PYTHONPATH") from error


def name_of(value: object) -> str:
    """The name, as module:function, under which :func:`imported` finds this very object: in the module that defines it,
    or else in the program that was started (a script or a notebook).

    Raises:
        ValueError: it has no such name, for example a function inside another one; says what to do.
    """
    kind = value if hasattr(value, "__qualname__") else type(value)
    for home in (str(getattr(value, "__module__", kind.__module__)), "__main__"):
        names = vars(sys.modules[home]) if home in sys.modules else {}
        named = next((name for name, each in names.items() if each is value and name.isidentifier()), None)
        if named is not None:
            return f"{home}:{named}"
    raise ValueError(
        f"{value!r} cannot be imported by name, and a run records its parts by name: define it at the "
        "top level of a module, a script or a notebook"
    )
