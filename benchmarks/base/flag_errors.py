"""Explain an error of a command line in one line: the flag, the value, and what is allowed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from benchmarks.base.flags import Flag, allowed, meant
from rlhf_core.names import nearest

UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")
NO_VALUE = re.compile(r"argument --([\w.]+)(?:/\S+)?: expected (?:one|at least one) argument")
BAD_CHOICE = re.compile(r"argument --([\w.]+): invalid \w+(?: value)?: '(.*?)'")
MISSING = re.compile(r"the following arguments are required: (.+)")
UNKNOWN_SETTING = re.compile(
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'"
    r"|(?:Key|Option|option) '(?P<key>[\w.]+)' is not (?:expected|accepted)"
)
KEY = re.compile(r'Parser key "([\w.]+)"')
VALUE = re.compile(r"(?:Got value|Given value): (?:NestedArg\(key='[\w.]+', val='(?P<nested>.*)'\)|(?P<plain>.*))")
NO_SETTINGS = re.compile(r"Unable to load config ['\"](.*?)['\"]")
BAD_FILE = re.compile(r"Problems parsing config: |Unexpected config: ")
IN_PYTHON = re.compile(
    r"(?<![@,])(?:load_policy\(\.\.\., )?\b(?:(?:PPOConfig|config)\.)?(?P<name>[a-z]\w*)="
    r"(?P<value>LoraSettings\(\)|True|False|None|'[^']*'|\"[^\"]*\"|\([\d, ]+\)|\{[^{}]*\}\)?|[\d.]*\d|<[^<>]*>)"
    r"|\b(?:PPOConfig|config)\.(?P<alone>[a-z]\w*)|(?<!-)\b(?P<listed>[a-z]\w*)(?=, one of )"
)
"""A setting as Python takes it, such as ``dtype='float32'`` or ``PPOConfig.max_length``; that of an arm, as in
``sparse@lam=1,gamma=1``, is none: it is typed so."""
VALUES = {"LoraSettings()": "'{}'", "True": "true", "False": "false", "None": "null"}
OF_A_PART = re.compile(r"^\s*- (\w+: .+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A command line: the words that were given, the flags there are, and the dataclass under each prefix of them."""

    given: Sequence[str]
    flags: tuple[Flag, ...]
    groups: Mapping[str, type]

    @property
    def kinds(self) -> Mapping[str, object]:
        """What each flag takes, and each prefix, that of a whole group."""
        return {**self.groups, **{flag.name: flag.kind for flag in self.flags}}


def explained(message: str, line: Line) -> str:
    """Turn jsonargparse's ``message`` about a command line into one line that says what to do. An unknown message is
    kept, on one line."""
    said = (read(message, line) for read in READINGS)
    return next((text for text in said if text), " ".join(message.split()))


def in_flags(message: str, line: Line) -> str:
    """A message about settings, with each that it begins with, or that it writes as Python takes it, as a flag."""
    prefix = ""
    for place, kind in line.groups.items():
        title = f"{kind.__name__}: "
        inside = (found for found in OF_A_PART.findall(message) if found.startswith(title))
        message = next(inside, message)
        if message.startswith(title):
            prefix, message = f"{place}.", message.removeprefix(title)
    known = {flag.name for flag in line.flags}
    parts = message.split("; ")
    named = "; ".join(f"--{prefix}{part}" if prefix + part.split(" ")[0] in known else part for part in parts)
    return as_typed(named, line.flags)


def as_typed(message: str, flags: Sequence[Flag]) -> str:
    """The message of an engine that knows no command line, with settings as they are typed: ``dtype='float32'`` is
    ``--loading.dtype float32``. What is no setting of ``flags`` stays as it is."""
    by_leaf = {flag.leaf: f"--{flag.name}" for flag in reversed(flags)}

    def typed(found: re.Match[str]) -> str:
        name = found["name"] or found["alone"] or found["listed"]
        flag = by_leaf.get(name) or by_leaf.get(f"reward_{name}")  # label=... of the reward model is --reward_label
        if flag is None:
            return found[0]
        return f"{flag} {_typed_value(found['value'])}" if found["name"] else flag

    return IN_PYTHON.sub(typed, message)


def _typed_value(value: str) -> str:
    """A value of Python as YAML reads it, quoted where a shell would read it otherwise."""
    if value in VALUES:
        return VALUES[value]
    if value[0] in "'\"":
        return value[1:-1]
    if value[0] == "(":
        return f"'[{value[1:-1].replace(' ', '')}]'"
    return f"'{value.removesuffix(')').replace(chr(39), '')}'" if value[0] == "{" else value


def _unknown_word(message: str, line: Line) -> str:
    found = UNKNOWN_WORD.search(message)
    if not found:
        return ""
    if not found[1].startswith("-"):
        return f"{found[1]!r}: not expected here; settings are given as --NAME VALUE (--help lists them)"
    word = found[1].split("=", 1)[0]
    return _no_such(word.lstrip("-"), word, line)


def _no_value(message: str, line: Line) -> str:
    found = NO_VALUE.search(message)
    if not found:
        return ""
    kind = line.kinds.get(found[1])
    return f"--{found[1]}: the value is missing" + (f"; it must be {allowed(kind)}" if kind else "")


def _bad_choice(message: str, line: Line) -> str:
    found = BAD_CHOICE.search(message)
    return _refused(found[1], found[2], line) if found and found[1] in line.kinds else ""


def _missing(message: str, line: Line) -> str:
    found = MISSING.search(message)
    words = {flag.name for flag in line.flags if flag.positional}
    names = found[1].split(", ") if found else []
    shown = [name.upper() if name in words else f"--{name}" for name in names]
    return f"{' and '.join(shown)} must be given; --help lists the settings" if shown else ""


def _unknown_setting(message: str, line: Line) -> str:
    """A setting inside another, or in the file of --config, where its name is not among the words given."""
    found = UNKNOWN_SETTING.search(message)
    if not found:
        return ""
    parts = [*KEY.findall(message), found["group"], found["option"] or found["key"]]
    name = _joined([part for part in parts if part])
    written = any(word.split("=", 1)[0] == f"--{name}" for word in line.given)
    return _no_such(name, f"{name} (in the file of --config)" if _file(line) and not written else f"--{name}", line)


def _wrong_value(message: str, line: Line) -> str:
    key, value = _joined(KEY.findall(message)), VALUE.search(message) or NO_SETTINGS.search(message)
    if not value or key not in line.kinds:
        return ""
    return _refused(key, next(filter(None, value.groups()), ""), line)


def _bad_file(message: str, line: Line) -> str:
    if not _file(line) or not BAD_FILE.search(message):
        return ""
    return f"--config {_file(line)}: must be a YAML file of settings: {' '.join(message.split())}"


READINGS: tuple[Callable[[str, Line], str], ...] = (
    *(_unknown_word, _no_value, _bad_choice, _missing, _unknown_setting, _wrong_value),
    _bad_file,
)
"""Ways to read a message, in order; each returns an empty text for a message of another kind."""


def _refused(key: str, given: str, line: Line) -> str:
    kind = line.kinds[key]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return f"--{key}: must be {allowed(kind)}, got {given!r}{nearest(given, map(str, choices))}"


def _no_such(name: str, shown: str, line: Line) -> str:
    near = meant(name, line.flags, line.groups)
    return f"{shown}: did you mean {near}?" if near else f"{shown}: there is no such setting; --help all lists them"


def _file(line: Line) -> str:
    """The file of --config, or an empty text."""
    after = [value for word, value in zip(line.given, line.given[1:], strict=False) if word == "--config"]
    return next(iter(after), "")


def _joined(keys: Sequence[str]) -> str:
    """One name from the keys of nested messages, each of which may repeat the one before."""
    name = ""
    for key in keys:
        name = key if not name or key == name or key.startswith(f"{name}.") else f"{name}.{key}"
    return name
