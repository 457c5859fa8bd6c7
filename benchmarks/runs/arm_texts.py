"""Parse the text of an arm: a method, its settings in brackets, and changed PPO settings after ``@``.

This file imports no model library, so that a command line is checked at once; :mod:`~benchmarks.runs.arms` makes
redistributors of what is read here.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import yaml

from rlhf_core.names import nearest

METHOD = re.compile(r"(?P<method>[\w-]+(\.\w+)*)(\((?P<settings>.*)\))?", re.DOTALL)
CHANGE = re.compile(r"[\w.]+=[^@]+")
DEPTH = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)


@dataclass(frozen=True, kw_only=True)
class ArmText:
    """An arm's parts: ``settings`` as written between the brackets, ``changes`` of PPO settings as values."""

    method: str
    settings: str
    changes: Mapping[str, Any]


def arm_texts(given: str | Sequence[str]) -> list[str]:
    """The arms of one text, which commas outside brackets divide, or of a list."""
    texts = pieces(given, ",") if isinstance(given, str) else given
    return [text.strip() for text in texts if text.strip()]


def read_arm(text: str, known: Collection[str]) -> ArmText:
    """Take an arm apart.

    Raises:
        ValueError: an unreadable arm, or a method that is neither ``known`` nor dotted; names the nearest.
    """
    head, *changed = pieces(text, "@")
    found = read_call(head)
    if found is None or not all(map(CHANGE.fullmatch, changed)):
        raise ValueError(
            f"cannot read the arm {text!r}; write name, name(setting=value) or name@ppo_setting=value; a "
            "method of your own is package.module.Class"
        )
    method, settings = found
    if "." not in method and method not in known:
        way_out = nearest(method, known) or f"; one of {', '.join(known)}, or package.module.Class"
        raise ValueError(f"no redistributor {method!r}{way_out}")
    try:
        changes = {name: value_of(value) for name, value in assignments(changed).items()}
    except ValueError as error:
        raise ValueError(f"arm {text!r}: {error}") from error
    if "seed" in changes:
        raise ValueError(f"arm {text!r}: every arm runs under every seed of --seeds, so it cannot set its own")
    return ArmText(method=method, settings=settings, changes=changes)


def read_call(text: str) -> tuple[str, str] | None:
    """Name and settings of ``Name(settings)`` or ``Name``; None if the text is neither."""
    match = METHOD.fullmatch(text)
    settings = "" if match is None else match["settings"] or ""
    return None if match is None or not _balanced(settings) else (match["method"], settings)


def pieces(text: str, separator: str) -> list[str]:
    """What stands between separators that are in no bracket; an open bracket holds all that follows."""
    found, depth = [""], 0
    for character in text:
        depth += DEPTH.get(character, 0)
        if character == separator and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """Setting and value as written."""
    pairs = [text.partition("=") for text in texts if text.strip()]
    for name, equals, value in pairs:
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"expected setting=value, got {name + equals + value!r}")
    return {name.strip(): value for name, _, value in pairs}


def value_of(text: str) -> Any:
    """A value as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"a value cannot be read ({str(error).splitlines()[0]})") from error


def _balanced(text: str) -> bool:
    """Whether every bracket that opens closes, and none before it opens."""
    depths = list(accumulate(DEPTH.get(character, 0) for character in text))
    return not depths or (depths[-1] == 0 and min(depths) >= 0)
