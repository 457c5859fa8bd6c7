"""The record of a run, and folders that are never overwritten unasked."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.base.json_files import fingerprint, jsonable, write_json
from benchmarks.base.run_folder import claim_folder, git_state, run_record


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 3
    out: str = "runs"
    span: tuple[int, int] = (1, 2)
    inner: Inner = Inner()


def record(**changes):
    return run_record(
        {"steps": 3, "seeds": 5, "out": "a", "overwrite": False} | changes, {"data": "abc"}, made_by="test"
    )


def test_a_record_holds_what_is_needed_to_repeat():
    made = run_record(Settings(), {"reviews": "ff"}, made_by="test")
    assert made["settings"] == {"steps": 3, "out": "runs", "span": [1, 2], "inner": {"rate": 0.1}}
    assert {"python", "torch", "transformers", "numpy", "dense-rlhf"} <= made["versions"].keys()
    assert made["datasets"] == {"reviews": "ff"}
    assert made["git"].keys() == {"commit", "changed"}
    assert made["command"].startswith("python ")
    assert json.loads(json.dumps(made)) == made


def test_git_state(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "changed": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.py").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["changed"] is False
    (tmp_path / "models" / "y.py").write_text("2")
    assert git_state(tmp_path) == {"commit": clean["commit"], "changed": True}
    # A folder inside somebody else's repository is not in a repository of its own.
    assert git_state(tmp_path / "models")["commit"] is None


def test_fingerprint_depends_on_content_order_and_boundaries(tmp_path):
    (tmp_path / "f").write_text("ab")
    assert fingerprint(["ab"]) == fingerprint([tmp_path / "f"])
    assert len({fingerprint(parts) for parts in (["ab"], ["a", "b"], ["b", "a"], ["ab", ""])}) == 4


def test_jsonable_refuses_what_it_would_have_to_guess():
    assert jsonable({"p": Path("x"), "s": {2, 1}, "t": (1, None)}) == {"p": "x", "s": [1, 2], "t": [1, None]}
    with pytest.raises(TypeError, match="cannot record a object"):
        jsonable(object())


def test_a_new_or_empty_folder_is_taken(tmp_path):
    for folder in (tmp_path / "a" / "b", tmp_path):
        claim_folder(folder, record(), overwrite=False)
        assert json.loads((folder / "run.json").read_text())["settings"]["steps"] == 3
        if folder != tmp_path:
            (folder / "run.json").unlink()
            folder.rmdir()
            folder.parent.rmdir()


def test_the_same_run_resumes_and_keeps_its_files(tmp_path):
    claim_folder(tmp_path, record(), overwrite=False)
    (tmp_path / "kept").write_text("x")
    claim_folder(tmp_path, record(out="moved"), overwrite=False)
    claim_folder(tmp_path, record(seeds=9), overwrite=False, may_change=("seeds",))
    assert (tmp_path / "kept").exists()
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["seeds"] == 9


def test_other_settings_or_data_are_refused_by_name(tmp_path):
    claim_folder(tmp_path, record(), overwrite=False)
    with pytest.raises(FileExistsError, match=r"steps was 3 and is 4\).*--overwrite"):
        claim_folder(tmp_path, record(steps=4), overwrite=False)
    with pytest.raises(FileExistsError, match="data was 'abc' and is 'other'"):
        claim_folder(tmp_path, {**record(), "datasets": {"data": "other"}}, overwrite=False)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["steps"] == 3


def test_overwrite_deletes_our_run_only(tmp_path):
    claim_folder(tmp_path / "run", record(), overwrite=False)
    (tmp_path / "run" / "old").write_text("x")
    claim_folder(tmp_path / "run", record(steps=4), overwrite=True)
    assert not (tmp_path / "run" / "old").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"holds no run\.json"):
            claim_folder(precious, record(), overwrite=overwrite)
    assert (precious / "thesis.tex").exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        claim_folder(tmp_path / "file", record(), overwrite=True)


def test_write_json_is_all_or_nothing(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
