"""Who may import whom, and that the packages work from outside the repository."""

import ast
import configparser
import re
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from redistributors import REDISTRIBUTORS

ROOT = Path(__file__).resolve().parents[2]
TOP = ("rlhf_core", "redistributors", "models", "benchmarks")


def test_import_contracts_are_kept():
    # beside this interpreter: the environment need not be active, so PATH need not have it
    command = [Path(sys.executable).with_name("lint-imports"), "--config", "setup.cfg", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a process that starts in another folder prints: model libraries after importing the engine, then versions
    and methods after importing the rest."""
    code = (
        "import sys, rlhf_core, redistributors;"
        "print([m for m in ('transformers', 'peft', 'bitsandbytes', 'datasets', 'trl') if m in sys.modules]);"
        "import models, benchmarks, importlib.metadata as m;"
        "print(m.version('dense-rlhf'), rlhf_core.__version__, *sorted(redistributors.REDISTRIBUTORS))"
    )
    folder = tmp_path_factory.mktemp("elsewhere")
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_engine_alone_needs_no_model_library(elsewhere):
    assert elsewhere[0] == "[]"


def test_packages_import_from_elsewhere(elsewhere):
    installed, own, *methods = elsewhere[1].split()
    assert installed == own
    assert methods == sorted(REDISTRIBUTORS)


def imported() -> set[str]:
    """Top-level modules that the packages import, anywhere in a file."""
    nodes = [
        node for top in TOP for file in (ROOT / top).rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))
    ]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | named}


def test_what_is_declared_is_imported_somewhere():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    declared = re.findall(r"^[\w.-]+", settings["options"]["install_requires"], re.MULTILINE)
    modules = defaultdict(set)
    for module, distributions in packages_distributions().items():
        for name in distributions:
            modules[name.lower()].add(module)
    used = imported()
    assert {"torch", "bitsandbytes", "einops"} <= set(declared)
    assert [name for name in declared if not modules[name.lower()] & used] == []
