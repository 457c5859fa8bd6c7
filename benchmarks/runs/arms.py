"""Arms: a labelled redistributor with changes to the task's PPO settings, as written on the command line."""

import dataclasses
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import redistributors
from benchmarks.base.importing import imported_module
from benchmarks.base.settings_checks import require_all
from benchmarks.runs.arm_texts import arm_texts, assignments, pieces, read_arm, read_call, value_of
from redistributors import REDISTRIBUTORS
from rlhf_core.names import nearest
from rlhf_core.types import Redistributor


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
                f"{self.method} makes a {type(made).__name__}, which is not a redistributor: that has needs, causal "
                "and conserving, and is called with a rollout"
            )
        return made

    def made(self) -> Any:
        """A new instance, whatever it is; raises like :meth:`redistributor`, but for what is not a redistributor."""
        settings = {name: value.made() if isinstance(value, Arm) else value for name, value in self.settings.items()}
        make = _maker(self.method)
        if dataclasses.is_dataclass(make):
            known = [field.name for field in dataclasses.fields(make) if field.init]
            if unknown := [name for name in settings if name not in known]:
                has = ", ".join(known) or "none"
                raise ValueError(f"it has no setting {unknown[0]!r}{nearest(unknown[0], known)}; its settings: {has}")
        return make(**settings)


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
    texts = arm_texts(given)
    require_all(*(partial(_arm, text) for text in texts))
    arms = tuple(map(_arm, texts))
    for label, times in Counter(arm.label for arm in arms).items():
        if times > 1:
            raise ValueError(f"the arm {label} is named {times} times; once is enough")
    return arms


def _arm(text: str) -> Arm:
    read = read_arm(text, REDISTRIBUTORS)
    method, changes = read.method, read.changes
    try:
        _require_method(method)
        settings = _settings(method, read.settings)
        arm = Arm(label=_label(method, {**settings, **changes}), method=method, settings=settings, changes=changes)
        arm.redistributor()
    except RecursionError as error:
        raise ValueError(f"the arm {text[:40]!r}… is nested too deep") from error
    except (TypeError, ValueError) as error:
        said = f"{error}".removeprefix(f"{_class_of(method)}: ")
        raise ValueError(f"arm {text!r}: {said}") from error
    return arm


def _settings(method: str, text: str) -> dict[str, Any]:
    """What stands in a method's brackets."""
    make = _maker(method)
    inner, defaults = _inner_settings(make), _defaults(make)

    def one(name: str, value: str) -> Any:
        if name in inner:
            return _inner(value)
        default = defaults.get(name)
        return _object(value.strip(), default) if _is_object(default) else value_of(value)

    return {name: one(name, value) for name, value in assignments(pieces(text, ",")).items()}


def _object(text: str, default: object) -> Arm:
    """An object that is not a method, by the name of its class: one that ``redistributors`` exports, one in the module
    of the default's class, or a dotted name."""
    found, homes = read_call(text), (redistributors.__name__, type(default).__module__)
    if found is None:
        raise ValueError(f"cannot read {text!r}; write Name or Name(setting=value), such as {type(default).__name__}()")
    name, inside = found
    places = [home for home in homes if isinstance(getattr(sys.modules[home], name, None), type)]
    if "." not in name and not places:
        raise ValueError(f"no class {name!r} in {' or '.join(homes)}; write package.module.Class")
    method = name if "." in name else f"{places[0]}.{name}"
    _require_part(method, type(default))
    settings = _settings(method, inside)
    made = Arm(label=_label(name, settings), method=method, settings=settings, changes={})
    made.made()  # report now a setting that the class refuses
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


def _class_of(method: str) -> str:
    """The name of the registered class that its own errors begin with; the arm names the method already."""
    make = REDISTRIBUTORS.get(method)
    return "" if make is None else (make.func if isinstance(make, partial) else make).__name__


def _class(dotted: str) -> type:
    """Raises ValueError where there is none of this name, or its module cannot be imported."""
    module, _, name = dotted.rpartition(".")
    home = imported_module(module)
    found = getattr(home, name, None)
    if not isinstance(found, type):
        classes = [each for each, value in vars(home).items() if isinstance(value, type)]
        way_out = nearest(name, classes) or "; write package.module.Class"
        raise ValueError(f"{module} has no class {name}{way_out}")
    return found


def _require_method(method: str) -> None:
    """Raise ValueError unless the name is registered or that of a redistributor's class; asked before it is called."""
    lacking = set() if method in REDISTRIBUTORS else _members(Redistributor) - _declared(_class(method))
    if lacking:
        raise ValueError(
            f"{method} is not a redistributor's class and was not called: it declares no "
            f"{', no '.join(sorted(lacking))}; a redistributor has needs, causal and conserving, and is called "
            "with a rollout"
        )


def _require_part(dotted: str, default: type) -> None:
    """Raise ValueError unless the class can stand in for ``default``: a subclass, or one with its public members, its
    own settings aside; asked before it is called."""
    kind, members = _class(dotted), _members(default) - {field.name for field in dataclasses.fields(default)}
    lacking = members - _declared(kind)
    if not issubclass(kind, default) and (lacking or not members):
        why = f"it declares no {', no '.join(sorted(lacking))}" if lacking else "it is not a subclass of it"
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
