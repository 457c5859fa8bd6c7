"""The public line of the engine: what it exports is documented, and holds what the README names."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import rlhf_core

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", rlhf_core.__all__)
def test_every_export_is_documented(name):
    exported = getattr(rlhf_core, name)
    documentation = (vars(exported)["__doc__"] if inspect.isclass(exported) else exported.__doc__) or ""
    assert documentation
    assert not documentation.startswith(f"{name}(")  # what a dataclass has that nobody described


def test_exports_are_sorted_and_are_all_that_is_imported():
    imported = {
        alias.name
        for node in ast.parse(inspect.getsource(rlhf_core)).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(rlhf_core.__all__) == imported
    assert sorted(rlhf_core.__all__) == rlhf_core.__all__


def test_classes_of_the_engine_that_the_readme_names_are_exported():
    named = set(re.findall(r"`([A-Z][A-Za-z]+)[`(]", (ROOT / "README.md").read_text(encoding="utf-8")))
    classes = {
        node.name
        for file in (ROOT / "rlhf_core").rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    assert named & classes
    assert named & classes <= set(rlhf_core.__all__)
