"""Break the code once per line of tests/mutations.py and see the named test fall."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rlhf_core", "redistributors", "models", "benchmarks", "tests")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}-{m.mutated[:40]}")
def test_every_mutation_names_one_line(mutation: Mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.original) == 1
    file, name = mutation.test.split("::")
    assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}-{m.mutated[:40]}")
def test_the_named_test_falls(mutation: Mutation, copy: Path):
    file = copy / mutation.file
    source = file.read_text()
    file.write_text(source.replace(mutation.original, mutation.mutated))
    try:
        result = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider", mutation.test],
            cwd=copy,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(source)
    assert result.returncode == 1, result.stdout[-2000:]
    assert "= FAILURES =" in result.stdout
