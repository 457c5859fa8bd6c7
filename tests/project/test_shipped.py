"""What an installed copy says and reads is there: its texts name no file that only the repository has, and its packages
lack none of their files."""

import ast
import configparser
import re
from pathlib import Path

import pytest
from setuptools import find_packages

from benchmarks.cost.engine_processes import INSTALL, WORKER

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PACKAGES = find_packages(str(ROOT), include=SETUP["options.packages.find"]["include"].split())
TOP = ("rlhf_core", "redistributors", "models", "benchmarks")
ONLY_IN_THE_REPOSITORY = {"benchmarks/RESULTS.md"}
NAMED = re.compile(
    r"\b(?:docs|tools|tests|benchmarks|models|redistributors|rlhf_core)/[\w*/-]+\.(?:py|sh|md|yaml)\b"
    r"|\b(?:README|CONTRIBUTING|CHANGELOG|SECURITY)\b|\bMakefile\b|\bconstraints\.txt|\binstall\.sh\b"
)
COMMAND = re.compile(r"python -m ((?:rlhf_core|redistributors|models|benchmarks)[\w.]*\w)")


def shipped() -> set[str]:
    """Files of the wheel, relative to the repository: modules of its packages, and their package_data."""
    files = {path for name in PACKAGES for path in (ROOT / name.replace(".", "/")).glob("*.py")}
    for package, patterns in SETUP["options.package_data"].items():
        for pattern in patterns.replace(",", " ").split():
            files |= set((ROOT / package).glob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in files}


def sources() -> list[Path]:
    return sorted(ROOT / name for name in shipped() if name.endswith(".py"))


def texts(source: str) -> list[str]:
    """Every docstring and literal with words in it, each on one line; a single word is a name that code uses."""
    found = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [" ".join(text.split()) for text in found if isinstance(text, str) and " " in text.strip()]


def unmarked(text: str) -> list[str]:
    """Files of the repository that a text names without saying, nearby, that they are in the repository."""
    return [
        match[0]
        for match in NAMED.finditer(text)
        if "repository" not in text[max(0, match.start() - 60) : match.end() + 60]
    ]


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("see docs/performance.md for more", ["docs/performance.md"]),
        ("a name of benchmarks/data/templates.py", ["benchmarks/data/templates.py"]),
        ("as README's glossary has it", ["README"]),
        ("--config benchmarks/presets/demo.yaml now", ["benchmarks/presets/demo.yaml"]),
        ("python tools/convert.py (in the project's repository)", []),
        ("a name of benchmarks.data.templates", []),
    ],
)
def test_a_file_of_the_repository_is_told_from_a_module(text, files):
    assert unmarked(text) == files


def test_texts_of_the_packages_name_nothing_that_an_installed_copy_lacks():
    writes_its_own = "rlhf_core/run/model_card.py"  # its README.md is a saved model's
    lacking = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources()
        for text in texts(path.read_text("utf-8"))
        for name in unmarked(text)
    }
    assert {(file, name) for file, name in lacking if file != writes_its_own} == set()


def test_commands_that_texts_name_are_modules_that_are_shipped():
    modules = {name.removesuffix(".py").replace("/", ".") for name in shipped()}
    named = {found for path in sources() for found in COMMAND.findall(path.read_text("utf-8"))}
    assert "benchmarks.prepare" in named
    assert named <= modules


def test_every_file_of_the_packages_is_shipped():
    files = {
        path.relative_to(ROOT).as_posix()
        for top in TOP
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - shipped() == ONLY_IN_THE_REPOSITORY
    assert WORKER.is_file()
    assert INSTALL.is_file()
