"""One process at a time works in a folder, and leaves nothing behind."""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.base import folder_lock
from benchmarks.base.folder_lock import held_folder, locked
from benchmarks.base.run_folder import remove_stale, temporary_sibling

HOLDER = """
import sys
from pathlib import Path
from benchmarks.base.{module} import {name}
with {name}(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(module, name, folder):
    """Another process holds ``folder`` meanwhile, and is killed at the end; what it says once it holds it."""
    code, pipe = HOLDER.format(module=module, name=name), subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, text=True) as process:
        yield process.stdout.readline().strip()
        process.kill()


def test_the_lock_is_gone_when_the_run_is(tmp_path):
    with locked(tmp_path / "runs" / "mine"):
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [".mine.lock"]
    with pytest.raises(RuntimeError), locked(tmp_path / "runs" / "mine"):
        raise RuntimeError
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_taken(tmp_path):
    with (
        held_by_another("folder_lock", "locked", tmp_path / "out"),
        pytest.raises(FileExistsError, match="another process works in .*out"),
        locked(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / ".out.lock").exists()
    with locked(tmp_path / "out"):
        pass
    assert not (tmp_path / ".out.lock").exists()


def test_a_lock_that_was_removed_between_opening_and_holding_it_is_not_taken_for_one(tmp_path, monkeypatch):
    path, ends = tmp_path / ".out.lock", [True]

    def hold(descriptor):
        if ends:
            ends.pop()
            path.unlink()  # as the process does that held it until now
        return held(descriptor)

    held = folder_lock.hold
    monkeypatch.setattr(folder_lock, "hold", hold)
    with locked(tmp_path / "out"):
        assert path.exists()
        monkeypatch.undo()
        with pytest.raises(FileExistsError), locked(tmp_path / "out"):
            pass


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    others = [tmp_path / name for name in (".toy-0123-notours1", ".other-0123-0123abcd", "toy-0123", ".toy-0123")]
    for other in others:
        other.mkdir()
    with held_by_another("run_folder", "temporary_sibling", tmp_path / "toy-0123") as left:
        remove_stale(tmp_path, "toy-[0-9a-f]{4}")
        assert Path(left).is_dir()
    assert Path(left).is_dir()
    remove_stale(tmp_path, "toy-[0-9a-f]{4}")
    assert sorted(tmp_path.iterdir()) == sorted(others)
    remove_stale(tmp_path / "nowhere", "toy")


def test_a_folder_that_is_gone_is_not_held(tmp_path):
    with temporary_sibling(tmp_path / "out") as folder:
        with held_folder(folder) as held:
            assert not held  # by the sibling itself
        shutil.rmtree(folder)
        with held_folder(folder) as held:
            assert not held
    assert list(tmp_path.iterdir()) == []
