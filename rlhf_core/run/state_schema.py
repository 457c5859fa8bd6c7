"""Check the form of a trainer's saved numbers against those of the trainer that resumes from them."""

import re
from collections.abc import Iterator, Mapping
from reprlib import repr as shortened
from typing import Any

KINDS: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a text"),
}
COMPARED = frozenset({"config", "identity", "redistributor", "run", "tensors"})
"""Compared by their values, or not the trainer's at all."""
GROWING = re.compile(r"budgets|optimizer\.beside|optimizer\.groups\[\d+\]")
"""Where names come up as a run goes on."""
SIGNED = re.compile(r"score_moments\.mean|optimizer\.(?!groups\[\d+\]\.(initial_)?lr$).*")
WHOLE_LIMIT = 2**63


def misfits(found: Mapping[str, Any], due: Mapping[str, Any]) -> Iterator[str]:
    """Everything in ``found`` whose form differs from ``due``, each with its name, value and the expected form."""
    yield from (f"{name} is missing" for name in sorted(due.keys() - found.keys()))
    yield from (f"{name} is unknown to this version" for name in sorted(found.keys() - due.keys() - COMPARED))
    for name in sorted((found.keys() & due.keys()) - COMPARED):
        yield from _misfits(found[name], due[name], name)
    for name, budget in found["budgets"].items() if isinstance(found.get("budgets"), dict) else ():
        if type(budget) is not int or budget < 1:
            yield _said(f"budgets.{name}", budget, "a whole number above 0")


def _misfits(found: Any, due: Any, name: str) -> Iterator[str]:
    if isinstance(due, Mapping):
        yield from _in_object(found, due, name) if isinstance(found, dict) else [_said(name, found, "an object")]
    elif isinstance(due, list):
        if not isinstance(found, list) or len(found) != len(due):
            yield _said(name, found, f"a list of {len(due)}")
        else:
            for place, (one, other) in enumerate(zip(found, due, strict=True)):
                yield from _misfits(one, other, f"{name}[{place}]")
    elif due is None:  # an optimizer may count from nothing; elsewhere null stays null
        if found is not None and (isinstance(found, dict | list) or not name.startswith("optimizer.")):
            yield _said(name, found, "null")
    else:
        kinds, words = KINDS[type(due)]
        if not isinstance(found, kinds) or (isinstance(found, bool) and not isinstance(due, bool)):
            yield _said(name, found, words)
        elif not isinstance(found, str):
            if not -WHOLE_LIMIT < found < WHOLE_LIMIT:
                yield _said(name, found, "a number that a run can reach")
            elif found < 0 and not SIGNED.fullmatch(name):
                yield _said(name, found, f"{words}, 0 or more")


def _in_object(found: dict[str, Any], due: Mapping[str, Any], name: str) -> Iterator[str]:
    yield from (f"{name}.{key} is missing" for key in sorted(due.keys() - found.keys()))
    if not GROWING.fullmatch(name):
        yield from (f"{name}.{key} is unknown to this version" for key in sorted(found.keys() - due.keys()))
    for key in sorted(due.keys() & found.keys()):
        yield from _misfits(found[key], due[key], f"{name}.{key}")


def _said(name: str, found: object, due: str) -> str:
    return f"{name} is {shortened(found)}, where {due} is expected"
