"""The public line of the packages: what they export is declared once; the engine's is documented and holds what pages
for users name."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import models
import redistributors
import rlhf_core

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", rlhf_core.__all__)
def test_every_export_is_documented(name):
    exported = getattr(rlhf_core, name)
    documentation = (vars(exported)["__doc__"] if inspect.isclass(exported) else exported.__doc__) or ""
    assert documentation
    assert not documentation.startswith(f"{name}(")  # what a dataclass has that nobody described


@pytest.mark.parametrize("package", [rlhf_core, redistributors, models], ids=lambda package: package.__name__)
def test_what_is_public_is_what_the_stub_imports_and_declares(package):
    tree = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    (declared,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert package.__all__ == sorted(declared) == sorted(imported) == dir(package)
    assert all(hasattr(package, name) for name in declared)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="rlhf_core attribute PPOTrainr"):
        rlhf_core.PPOTrainr  # noqa: B018


def test_classes_of_the_engine_that_pages_for_users_name_are_exported():
    pages = [ROOT / "README.md", ROOT / "docs/concepts.md", *(ROOT / "docs/howto").glob("*.md")]
    pages += (ROOT / "docs/tutorial").glob("*.md")
    named = {name for page in pages for name in re.findall(r"`([A-Z][A-Za-z]+)[`(]", page.read_text(encoding="utf-8"))}
    classes = {
        node.name
        for file in (ROOT / "rlhf_core").rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    assert named & classes
    assert named & classes <= set(rlhf_core.__all__)
