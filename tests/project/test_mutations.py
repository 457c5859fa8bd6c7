"""Break the code once per line of the mutation lists (tests/*/mutations.py) and see the named test fall."""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutation import Mutation

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlhf_core", "redistributors", "models", "benchmarks")
ALL = tuple(
    mutation
    for package in PACKAGES
    for mutation in runpy.run_path(str(ROOT / "tests" / package / "mutations.py"))["MUTATIONS"]
)


@dataclass(frozen=True)
class Bench:
    """A copy of the code to break, and a process that runs tests in it."""

    folder: Path
    runner: subprocess.Popen[str]

    def run(self, test: str) -> tuple[int, str]:
        """Exit code and output of a test."""
        print(test, file=self.runner.stdin, flush=True)
        code, output = self.runner.stdout.readline().split(maxsplit=1)
        printed = Path(output.strip())
        try:
            return int(code), printed.read_text()
        finally:
            printed.unlink()


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("mutated")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    command = [sys.executable, "-B", str(ROOT / "tests" / "helpers" / "mutant.py"), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as runner:
        yield Bench(folder, runner)
        runner.stdin.close()


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: f"{m.file}-{m.mutated[:40]}")
def test_every_mutation_names_one_line(mutation: Mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.original) == 1
    file, name = mutation.test.split("::")
    assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", ALL, ids=lambda m: f"{m.file}-{m.mutated[:40]}")
def test_the_named_test_falls(mutation: Mutation, bench: Bench):
    file = bench.folder / mutation.file
    source = file.read_text()
    file.write_text(source.replace(mutation.original, mutation.mutated))
    try:
        code, printed = bench.run(mutation.test)
    finally:
        file.write_text(source)
    assert code == 1, printed[-2000:]
    assert "= FAILURES =" in printed


@pytest.mark.slow
def test_unbroken_code_stands(bench: Bench):
    """The bench itself fails nothing."""
    code, printed = bench.run(ALL[0].test)
    assert code == 0, printed[-2000:]


def test_a_test_in_a_forked_child_does_not_wait_for_a_progress_bar_of_its_parent(tmp_path):
    lines = (
        "import signal",
        "from tqdm import tqdm",
        "def test_bar():",
        "    signal.alarm(20)",
        "    assert [*tqdm([1])] == [1]",
    )
    (tmp_path / "test_bar.py").write_text("\n".join(lines))
    parent = f"""
import sys, threading
sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
import mutant
from tqdm import tqdm
holder = threading.Thread(target=tqdm.get_lock().acquire)
holder.start()
holder.join()
print(mutant.answer({str(tmp_path)!r}, "test_bar.py")[0])
"""
    said = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split()[-1] == "0", said.stderr
