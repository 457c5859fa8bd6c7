"""Arms: a labelled redistributor with changes to the task's PPO settings, as written on the command line."""

import dataclasses
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser

import redistributors
from redistributors import REDISTRIBUTORS
from rlhf_core.config import PPOConfig
from rlhf_core.names import nearest
from rlhf_core.types import Redistributor

METHOD = re.compile(r"(?P<method>[\w-]+(\.\w+)*)(\((?P<settings>.*)\))?", re.DOTALL)
CHANGE = re.compile(r"[\w.]+=[^@]+")
DEPTH = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A redistributor by name with its settings, and what it changes in the PPO settings.

    ``method`` is a name of the registry, or that of a class from elsewhere, ``package.module.Class``. A setting that is
    a redistributor itself, or another object, stands in ``settings`` as an arm.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]

    def redistributor(self) -> Redistributor:
        """A new instance, down to the innermost.

        Raises:
            ValueError, TypeError: settings the method does not take, or a name from elsewhere that cannot be imported
                or makes no redistributor.
        """
        _require_method(self.method)
        made = self.made()
        if not isinstance(made, Redistributor):
            raise ValueError(
                f"{self.method} makes a {type(made).__name__}, which is no redistributor: that has needs, causal and "
                "conserving, and is called with a rollout"
            )
        return made

    def made(self) -> Any:
        """A new instance, whatever it is; raises as :meth:`redistributor`, but for what is no redistributor."""
        settings = {name: value.made() if isinstance(value, Arm) else value for name, value in self.settings.items()}
        return _maker(self.method)(**settings)


def parse_arms(given: str | Sequence[str]) -> tuple[Arm, ...]:
    """``sparse, uniform(beta=0.8), sparse@lam=1``, as one text or a list of arms, into arms.

    Brackets hold the redistributor's settings, each ``@`` changes one PPO setting (``@kl.init_coef=0.1``). The label is
    made of both: ``uniform-beta0.8``, ``sparse-lam1``. A method that is not registered is named by where it is
    imported from, ``my_package.my_module.MyMethod(beta=0.5)``. A setting that is a redistributor is written as an arm,
    ``segment(inner=uniform(beta=0.8))``; one that is another object by its class, ``segment(boundaries=Sentences())``,
    which the package ``redistributors`` exports, or which stands beside the class of the default, or is dotted.

    An arm's text may be a stranger's, so only two kinds of class are ever called, and nothing else: one whose body
    declares the members of a redistributor, and, for a setting that is another object, one that declares the public
    members of its default. Importing a module runs it all the same: name only modules you trust.

    Raises:
        ValueError: an unreadable arm, an unknown method, settings it refuses, or two arms of one label.
    """
    texts = _pieces(given, ",") if isinstance(given, str) else given
    arms = tuple(_arm(text.strip()) for text in texts if text.strip())
    for label, times in Counter(arm.label for arm in arms).items():
        if times > 1:
            raise ValueError(f"the arm {label} is named {times} times; once is enough")
    return arms


def _arm(text: str) -> Arm:
    head, *changed = _pieces(text, "@")
    match = METHOD.fullmatch(head)
    if match is None or not _balanced(match["settings"] or "") or not all(map(CHANGE.fullmatch, changed)):
        raise ValueError(f"cannot read the arm {text!r}; write name, name(setting=value) or name@ppo_setting=value")
    method = match["method"]
    if "." not in method and method not in REDISTRIBUTORS:
        meant = nearest(method, REDISTRIBUTORS) or ";"
        names = f"{', '.join(REDISTRIBUTORS)}, or package.module.Class"
        raise ValueError(f"no redistributor {method!r}{meant} one of {names}")
    try:
        _require_method(method)
        settings = _settings(method, match["settings"] or "")
        changes = {name: _value(value) for name, value in _assignments(changed).items()}
        if "seed" in changes:
            raise ValueError("every arm runs under every seed of --seeds, so it cannot set its own")
        arm = Arm(label=_label(method, {**settings, **changes}), method=method, settings=settings, changes=changes)
        arm.redistributor()
    except RecursionError as error:
        raise ValueError(f"the arm {text[:40]!r}… is nested too deep") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"arm {text!r}: {error}") from error
    return arm


def _settings(method: str, text: str) -> dict[str, Any]:
    """What stands in a method's brackets."""
    make = _maker(method)
    inner, defaults = _inner_settings(make), _defaults(make)

    def one(name: str, value: str) -> Any:
        if name in inner:
            return _inner(value)
        default = defaults.get(name)
        return _object(value.strip(), default) if _is_object(default) else _value(value)

    return {name: one(name, value) for name, value in _assignments(_pieces(text, ",")).items()}


def _object(text: str, default: object) -> Arm:
    """An object that is no method, by the name of its class: one that ``redistributors`` exports, or that stands beside
    the class of the default, or dotted."""
    match, homes = METHOD.fullmatch(text), (redistributors.__name__, type(default).__module__)
    if match is None or not _balanced(match["settings"] or ""):
        raise ValueError(f"cannot read {text!r}; write Name or Name(setting=value), such as {type(default).__name__}()")
    name = match["method"]
    found = [home for home in homes if isinstance(getattr(sys.modules[home], name, None), type)]
    if "." not in name and not found:
        raise ValueError(f"no class {name!r} in {' or '.join(homes)}; write package.module.Class")
    method = name if "." in name else f"{found[0]}.{name}"
    _require_part(method, type(default))
    settings = _settings(method, match["settings"] or "")
    made = Arm(label=_label(name, settings), method=method, settings=settings, changes={})
    made.made()  # a setting that the class refuses is said now
    return made


def _inner(text: str) -> Arm:
    """The arm that a setting is; PPO's settings are the outer one's to change."""
    arm = _arm(text.strip())
    if arm.changes:
        raise ValueError(f"{text.strip()!r} stands inside another arm and cannot change PPO settings; write @ outside")
    return arm


def _label(method: str, named: Mapping[str, Any]) -> str:
    """A name for files and tables. Settings within settings stand between two +, so that each belongs to one method."""
    parts = [f"{name.rpartition('.')[2]}{_shown(value)}" for name, value in named.items()]
    return re.sub(r"[^\w.+-]", "", "-".join([method, *parts]))


def _shown(value: Any) -> str:
    """Items of a list are parted, so that [1, 2] is not 12."""
    if isinstance(value, Arm):
        return f"+{value.label}+" if value.settings else value.label
    return "_".join(map(_shown, value)) if isinstance(value, list) else str(value)


def _maker(method: str) -> Callable[..., Any]:
    """What makes the method: the registry's entry, or the class that stands under a dotted name elsewhere."""
    return REDISTRIBUTORS[method] if method in REDISTRIBUTORS else _class(method)


def _class(dotted: str) -> type:
    """Raises ValueError where there is none of this name, or its module cannot be imported."""
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a module may raise anything while it is imported
        raise ValueError(
            f"{module} cannot be imported ({type(error).__name__}: {error}); start from the folder that holds it, or "
            "name that folder in PYTHONPATH"
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"{module} has no class {name}; write package.module.Class")
    return found


def _require_method(method: str) -> None:
    """Raise ValueError unless the name is registered or that of a redistributor's class; asked before it is called."""
    lacking = set() if method in REDISTRIBUTORS else _members(Redistributor) - _declared(_class(method))
    if lacking:
        raise ValueError(
            f"{method} is no redistributor's class and was not called: it declares no {', no '.join(sorted(lacking))}; "
            "a redistributor has needs, causal and conserving, and is called with a rollout"
        )


def _require_part(dotted: str, default: type) -> None:
    """Raise ValueError unless the class can stand in for ``default``: a subclass, or one with its public members, its
    own settings aside; asked before it is called."""
    kind, members = _class(dotted), _members(default) - {field.name for field in dataclasses.fields(default)}
    lacking = members - _declared(kind)
    if not issubclass(kind, default) and (lacking or not members):
        why = f"it declares no {', no '.join(sorted(lacking))}" if lacking else "it is no subclass of it"
        raise ValueError(f"{dotted} cannot stand in for {default.__name__} and was not called: {why}")


def _members(kind: type) -> set[str]:
    """Public names in the class's body, and ``__call__``."""
    return {name for name in vars(kind) if name == "__call__" or not name.startswith("_")}


def _declared(kind: type) -> set[str]:
    """What a class has before it is called, and the fields it declares."""
    return {*dir(kind), *(name for base in inspect.getmro(kind) for name in inspect.get_annotations(base))}


def _inner_settings(make: Callable[..., Any]) -> frozenset[str]:
    """Settings that are redistributors themselves, by their annotation, which may be written as a text, or by their
    default."""

    def one(parameter: inspect.Parameter) -> bool:
        written = parameter.annotation
        names = re.findall(r"\w+", written) if isinstance(written, str) else []
        of_type = Redistributor in (written, *get_args(written)) or Redistributor.__name__ in names
        return of_type or isinstance(parameter.default, Redistributor)

    return frozenset(name for name, parameter in inspect.signature(make).parameters.items() if one(parameter))


def _defaults(make: Callable[..., Any]) -> dict[str, object]:
    """Every setting's default, those that a dataclass makes anew among them."""
    kind, bound = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    fields = dataclasses.fields(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else ()
    anew = {field.name: field.default_factory for field in fields if field.name not in bound}
    given = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    return given | {name: new() for name, new in anew.items() if new is not dataclasses.MISSING}


def _is_object(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _pieces(text: str, separator: str) -> list[str]:
    """What stands between separators that are in no bracket; an open bracket holds all that follows."""
    pieces, depth = [""], 0
    for character in text:
        depth += DEPTH.get(character, 0)
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def _balanced(text: str) -> bool:
    """Whether every bracket that opens closes, and none before it opens."""
    depths = list(accumulate(DEPTH.get(character, 0) for character in text))
    return not depths or (depths[-1] == 0 and min(depths) >= 0)


def _assignments(texts: Sequence[str]) -> dict[str, str]:
    """Setting and value as written."""
    pairs = [text.partition("=") for text in texts if text.strip()]
    for name, equals, value in pairs:
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"expected setting=value, got {name + equals + value!r}")
    return {name.strip(): value for name, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a value cannot be read ({str(error).splitlines()[0]})") from error


PAPER_SETTINGS = PPOConfig.from_paper("positive_generation")
"""What the settings of a task, and those on the command line, change."""


def with_settings(base: PPOConfig, changes: Mapping[str, Any]) -> PPOConfig:
    """``base`` with settings changed by (dotted or nested) name, converted to each field's type and checked.

    Raises:
        ValueError: an unknown name, a value of another type, or one out of range.
    """
    parser = _ppo_parser()
    merged = {**_flat(dataclasses.asdict(base)), **_flat(changes)}
    try:
        config: PPOConfig = parser.instantiate(parser.parse_object({"ppo": merged})).ppo
    except ValueError:
        raise
    except Exception as error:  # argparse's own error type says what is wrong, but is not a ValueError
        raise ValueError(f"PPO settings {dict(changes)}: {error}") from error
    return config


@cache
def _ppo_parser() -> ArgumentParser:
    """Made once: a plan asks for the settings of every arm under every seed."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PPOConfig, "ppo")
    return parser


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
