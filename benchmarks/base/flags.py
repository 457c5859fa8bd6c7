"""The flags of a command line: the values that each takes, its help, and the flag that a typo meant."""

import dataclasses
import re
from argparse import Action, _StoreAction
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from rlhf_core.names import closest

SCALARS: Mapping[Any, tuple[str, str, str]] = {
    int: ("INT", "an integer", "integers"),
    float: ("NUMBER", "a number", "numbers"),
    bool: ("{true,false}", "true or false", "truth values"),
    str: ("TEXT", "a text", "texts"),
}
"""Of each plain type: its placeholder in the help, what one value is, and what several are."""
PLACEHOLDER = re.compile(r"(\w+)=(?:\w+\((\w+)=(?:'(\w+)'|\.\.\.)\)|\((.*?)\))")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One setting of a command line."""

    name: str
    """Without the two dashes, as ``ppo.kl.init_coef``."""
    kind: Any
    """Its annotation."""
    help: str
    default: Any
    required: bool
    positional: bool
    """Whether it is given as words without a flag."""

    @property
    def prefix(self) -> str:
        """``ppo.kl`` of ``ppo.kl.init_coef``."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """``init_coef`` of ``ppo.kl.init_coef``."""
        return self.name.rpartition(".")[2]


def flags_of(parser: ArgumentParser) -> tuple[Flag, ...]:
    """Every setting, in order; those of an optional dataclass follow the flag of the whole."""
    return tuple(_flags(parser))


def _flags(parser: ArgumentParser) -> Iterator[Flag]:
    for action in parser._actions:
        kind = getattr(action, "_typehint", None) or _plain_kind(action)
        if kind is None or action.dest.endswith(".help"):  # jsonargparse's own, beside every optional dataclass
            continue
        yield Flag(
            name=action.dest,
            kind=kind,
            help=action.help or "",
            default=action.default,
            required=action.dest in parser.required_args if hasattr(parser, "required_args") else action.required,
            positional=not action.option_strings,
        )
        for part in _parts(kind):
            inner = ArgumentParser()
            inner.add_class_arguments(part, action.dest)
            yield from _flags(inner)


def _plain_kind(action: Action) -> Any:
    """What an argument takes that was added without an annotation; None for one that is not a setting."""
    if type(action) is not _StoreAction:
        return None
    return Literal[tuple(action.choices)] if action.choices else action.type or str


def groups_of(parser: ArgumentParser) -> Mapping[str, type]:
    """The dataclass under each prefix of nested flags, as ``{"ppo": PPOConfig, "ppo.kl": KLConfig}``."""
    found: dict[str, type] = {}
    for action in parser._actions:
        given = getattr(action, "basetype", None)
        parts = [given] if given is not None else _parts(getattr(action, "_typehint", None))
        if parts and not action.dest.endswith(".help"):
            found[action.dest] = parts[0]
    return found


def _parts(kind: Any) -> list[type]:
    """The dataclasses among the choices of an annotation such as ``LoraSettings | None``."""
    choices = get_args(kind) if get_origin(kind) in (UnionType, Union) else ()
    return [choice for choice in choices if dataclasses.is_dataclass(choice) and isinstance(choice, type)]


def placeholder(kind: Any) -> str:
    """The placeholder of the value in the help, as ``INT`` or ``{a,b}``."""
    if kind in SCALARS:
        return SCALARS[kind][0]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if origin in (UnionType, Union):
        return "|".join(dict.fromkeys(placeholder(part) for part in parts if part is not NoneType))
    shown = "[...]" if ... in parts else f"[{', '.join('ABCDEF'[: len(parts)])}]"
    return {list: "[...]", tuple: shown, dict: "{NAME: VALUE}"}.get(origin, "{...}")


def allowed(kind: Any) -> str:
    """What a value must be, in words, as "an integer" or "one of a, b"."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in SCALARS:
        return SCALARS[kind][1]
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (UnionType, Union):
        return " or ".join("null" if part is NoneType else allowed(part) for part in parts)
    if origin in (list, tuple) and parts[0] in SCALARS:
        several = SCALARS[parts[0]][2]
        fixed = origin is tuple and ... not in parts
        return f"{len(parts)} {several}, as '{placeholder(kind)}'" if fixed else f"a list of {several}"
    return {list: "a list", dict: "a mapping, as '{name: value}'"}.get(origin, "settings, as '{name: value}'")


def meant(name: str, flags: tuple[Flag, ...], groups: Mapping[str, type]) -> str:
    """The flag or flags that the unknown ``name`` may have meant, as they are written; empty if none is near."""
    prefix, _, leaf = name.rpartition(".")
    known = {flag.name for flag in flags}
    for place in dict.fromkeys((prefix, *groups)):
        words = getattr(groups.get(place), "__other_words__", {})
        if leaf in words and (place == prefix or not prefix):
            return _as_flags(words[leaf], place, known)
    namesakes = [flag.name for flag in flags if flag.leaf == leaf]
    neighbours = {flag.leaf: flag.name for flag in flags if flag.prefix == prefix}
    near = closest(leaf, neighbours)
    anywhere = {flag.leaf: flag.name for flag in reversed(flags)}
    far = closest(leaf, anywhere)
    found = namesakes or ([neighbours[near]] if near else []) or [closest(name, known) or ""]
    if found == [""] and far:
        found = [anywhere[far]]
    return " or ".join(f"--{each}" for each in found if each)


def _as_flags(words: str, prefix: str, known: set[str]) -> str:
    """What a class says of another library's name, in flags: "kl=KLConfig(init_coef=...)" is --ppo.kl.init_coef."""
    dotted = f"--{prefix}." if prefix else "--"
    first = re.match(r"'?(\w+)'?(?!=)", words)
    if first and dotted[2:] + first[1] in known:
        return dotted + first[1] + words[first.end() :]

    def flag(found: re.Match[str]) -> str:
        inner = f".{found[2]}" if found[2] else ""
        value = f" {found[3]}" if found[3] else f" '[{found[4]}]'" if found[4] else ""
        return f"{dotted}{found[1]}{inner}{value}"

    return PLACEHOLDER.sub(flag, words)
