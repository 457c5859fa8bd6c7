"""Every public name is documented: each of its parameters by name, and every error that it raises itself."""

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGES = ("rlhf_core", "redistributors", "models")
MODULES = ("rlhf_core.returns", "rlhf_core.masking", "rlhf_core.kl", "rlhf_core.losses")
"""Modules below the packages' roots whose functions users call."""
WITH_INTERFACES = (
    *("rlhf_core.types", "rlhf_core.kl", "rlhf_core.probe", "rlhf_core.run.loggers"),
    *("redistributors.segment", "redistributors.parts.state_features"),
)
Definition = ast.ClassDef | ast.FunctionDef


def public() -> list[str]:
    """``module.name`` of every public class and function."""
    named = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]
    named += [f"{module}.{name}" for module in MODULES for name in top_level(module) if not name.startswith("_")]
    return [name for name in named if inspect.isclass(thing(name)) or inspect.isfunction(thing(name))]


def thing(name: str) -> object:
    module, _, own = name.rpartition(".")
    return getattr(importlib.import_module(module), own)


@cache
def top_level(module: str) -> dict[str, Definition]:
    """Classes and functions that a module defines, as they stand in its file."""
    importlib.import_module(module)
    body = ast.parse(Path(sys.modules[module].__file__).read_text(encoding="utf-8")).body
    return {node.name: node for node in body if isinstance(node, Definition)}


def definition(name: str) -> Definition:
    found = inspect.unwrap(thing(name))
    return top_level(found.__module__)[found.__name__]


def members(kind: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in kind.body if isinstance(node, ast.FunctionDef)}


def bases(kind: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).split(".")[-1].split("[")[0] for base in kind.bases}


def interfaces() -> list[ast.ClassDef]:
    """Protocols; a method that fulfils one is documented by it."""
    found = [node for module in WITH_INTERFACES for node in top_level(module).values()]
    return [node for node in found if isinstance(node, ast.ClassDef) and "Protocol" in bases(node)]


def undocumented_fields(kind: ast.ClassDef) -> list[str]:
    """Fields of a dataclass without a docstring below them."""
    after = [*kind.body[1:], ast.Pass()]
    return [
        node.target.id
        for node, following in zip(kind.body, after, strict=True)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if "ClassVar" not in ast.unparse(node.annotation) and not isinstance(following, ast.Expr)
        if not (node.target.id.startswith("_"))
    ]


def parameters(function: ast.FunctionDef) -> list[str]:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [one.arg for one in given if one.arg not in ("self", "cls", "_")]


def raised(function: ast.FunctionDef) -> list[str]:
    """Names of the exceptions that a function raises in its own body."""
    found = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise))
    return [call.func.id for call in found if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]


def missing(text: str, names: list[str]) -> list[str]:
    return [name for name in names if not re.search(rf"(?<!\w){name}(?!\w)", text)]


def said(node: Definition) -> str:
    return ast.get_docstring(node) or ""


@pytest.mark.parametrize("name", [name for name in public() if inspect.isfunction(thing(name))])
def test_a_public_function_documents_its_parameters_and_errors(name):
    node = definition(name)
    assert said(node)
    assert missing(said(node), [*parameters(node), *raised(node)]) == []


@pytest.mark.parametrize("name", [name for name in public() if inspect.isclass(thing(name))])
def test_a_public_class_documents_its_settings_methods_and_errors(name):
    node = definition(name)
    assert said(node)
    own, lacking = members(node), {}
    built = [own[one] for one in ("__init__", "__post_init__") if one in own]
    texts = "\n".join([said(node), *map(said, built)])
    needed = [undocumented_fields(node), *map(parameters, built), *map(raised, built)]
    lacking["settings"] = missing(texts, [one for names in needed for one in names])
    for method, function in own.items():
        if method.startswith("_") and method != "__call__":
            continue
        by = [kind for kind in interfaces() if method in members(kind)]
        around = [said(node), said(function), *map(said, by), *(said(members(kind)[method]) for kind in by)]
        lacking[method] = missing("\n".join(around), [*parameters(function), *raised(function)])
    assert {where: names for where, names in lacking.items() if names} == {}


def test_what_lacks_its_documentation_is_found():
    tree = ast.parse('def f(a, b):\n    """Takes ``a``."""\n    raise ValueError("b")')
    (function,) = tree.body
    assert missing(said(function), [*parameters(function), *raised(function)]) == ["b", "ValueError"]
