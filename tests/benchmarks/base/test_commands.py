"""The list of commands: it names every command file, and hands each its words."""

import configparser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as commands
from benchmarks.base.run_folder import command_words

ROOT = Path(__file__).resolve().parents[3]
FILES = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "__main__"}


def test_every_command_file_is_listed_once_and_every_listed_command_is_there():
    assert sorted(commands.ALL.values()) == sorted(FILES)
    names = [name for group in commands.COMMANDS.values() for name in group]
    assert len(names) == len(set(names))


def test_the_list_fits_80_columns_and_says_what_each_command_is_for():
    lines = commands.overview().splitlines()
    assert max(map(len, lines)) <= 80
    for group in commands.COMMANDS.values():
        for name, about in group.items():
            assert any(line.split() == [name, *about.split()] for line in lines)


def test_the_console_script_is_the_list():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    name, _, target = settings["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert (name, getattr(importlib.import_module(module), function)) == ("dense-rlhf", commands.main)


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]], ids=str)
def test_without_a_command_all_are_listed(words, capsys):
    commands.main(words)
    assert "usage: python -m benchmarks COMMAND" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    commands.main(["--version"])
    assert capsys.readouterr().out.startswith("dense-rlhf ")


def test_a_wrong_command_is_answered_with_the_nearest(capsys):
    for name, said in (("presetz", "; did you mean 'presets'?"), ("zzz", "; python -m benchmarks lists them all")):
        with pytest.raises(SystemExit) as ended:
            commands.main([name])
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"python -m benchmarks: error: there is no command '{name}'{said}\n"


def test_ctrl_c_while_a_command_is_still_being_imported_prints_no_traceback(monkeypatch, capsys):
    def interrupted(module):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "import_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        commands.main(["compare"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nstopped; the same call goes on from what was saved, or else begins again\n"


def test_a_command_gets_its_words_and_says_how_it_was_called(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/dense-rlhf", "presets", "copy"])
    with pytest.raises(SystemExit):
        commands.main()
    assert capsys.readouterr().err == ("dense-rlhf presets: error: write presets, or presets copy NAME; got 'copy'\n")


def test_a_name_may_be_written_with_hyphens(monkeypatch):
    seen = []
    command = importlib.import_module("benchmarks.presets")
    monkeypatch.setattr(commands, "ALL", {"two_words": "presets"})
    monkeypatch.setattr(command, "main", seen.append)
    commands.main(["two-words", "--a", "b"])
    assert seen == [["--a", "b"]]


def test_the_record_of_a_run_has_the_command_that_was_typed(monkeypatch):
    assert command_words().startswith("python ")
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/dense-rlhf", "presets", "--out", "a b"])
    assert command_words() == "dense-rlhf presets --out 'a b'"


def presets(*words, folder):
    command = [sys.executable, "-m", "benchmarks", "presets", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_presets_are_listed_and_copied_and_nothing_is_overwritten_unasked(tmp_path):
    listed = presets(folder=tmp_path)
    assert listed.stdout.startswith("demo ")
    assert presets("copy", "demo", folder=tmp_path).returncode == 0
    shipped = (ROOT / "benchmarks" / "presets" / "demo.yaml").read_text()
    assert (tmp_path / "demo.yaml").read_text() == shipped
    (tmp_path / "demo.yaml").write_text("mine")
    again = presets("copy", "demo", folder=tmp_path)
    assert again.returncode == 2
    assert "demo.yaml is there already; choose another --out, or pass --overwrite true" in again.stderr
    assert (tmp_path / "demo.yaml").read_text() == "mine"
    assert presets("copy", "demo", "--overwrite", "true", "--out", "demo.yaml", folder=tmp_path).returncode == 0
    assert (tmp_path / "demo.yaml").read_text() == shipped
    assert "did you mean 'demo'?" in presets("copy", "demi", folder=tmp_path).stderr


def test_a_bug_report_has_versions_devices_and_no_folder(capsys):
    importlib.import_module("benchmarks.env").main([])
    said = capsys.readouterr().out
    for name in ("python", "torch", "transformers", "platform", "torch build", "devices", "git"):
        assert any(line.startswith(name) for line in said.splitlines())
    assert str(Path.home()) not in said
    assert str(ROOT) not in said


@pytest.mark.parametrize("name", commands.ALL)
def test_every_command_keeps_freed_memory(name, monkeypatch):
    """The figures of the documents were measured with it."""
    calls = []
    monkeypatch.setattr("benchmarks.base.command_line.keep_freed_memory", lambda: calls.append(name))
    task = ["positive_generation"] if name == "prepare" else []
    with pytest.raises(SystemExit):
        commands.main([name, *task, "--help"])
    assert calls
