"""What is said while runs are under way: of each the newest step, only what is new is read, no bar in a log."""

import io
import json
import os
from dataclasses import replace

import pytest
from table_task import TableTask, settings

from benchmarks.runs.comparison import Panel, plan, ppo_of
from benchmarks.runs.progress import LOG_SECONDS, Progress, Tail, duration
from benchmarks.runs.worker_pool import already_done


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def runs_in(tmp_path, steps=10):
    chosen = settings(tmp_path, steps=steps, redistributors="sparse", seeds=2)
    return plan(chosen, TableTask(), Panel(), ppo_of(TableTask(), {}))


def write_steps(run, first, last, score=1.25):
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "metrics.jsonl").open("a") as file:
        for step in range(first, last + 1):
            file.write(json.dumps({"step": step, "score": score, "kl": 0.5}) + "\n")


def test_what_earlier_calls_did_is_counted_in_runs_and_steps(tmp_path):
    runs = runs_in(tmp_path)
    assert already_done(runs, runs) == ""
    write_steps(runs[1], 1, 6)  # without a checkpoint it begins again
    assert already_done(runs, runs) == ""
    (runs[1].folder / "checkpoint-4").mkdir()
    assert already_done(runs, runs) == "goes on from what is there: 0 of 2 runs and 4 of 20 steps done before"
    assert already_done(runs, runs[1:]) == "goes on from what is there: 1 of 2 runs and 14 of 20 steps done before"
    assert already_done(runs[1:], runs[1:]) == "goes on from what is there: 4 of 10 steps done before"


def test_only_whole_lines_that_are_new_are_read(tmp_path):
    run = runs_in(tmp_path)[0]
    tail = Tail(run)
    assert not tail.advance()
    write_steps(run, 1, 2)
    assert tail.advance()
    assert (tail.steps, str(tail)) == (2, "sparse, seed 0, step 2 of 10: score 1.25, KL 0.5")
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "sco')
    assert not tail.advance()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('re": 3.0, "kl": "nan"}\n')
    assert tail.advance()
    assert str(tail) == "sparse, seed 0, step 3 of 10: score 3, KL nan"
    os.truncate(run.folder / "metrics.jsonl", 0)  # a run that goes on from an earlier checkpoint
    write_steps(run, 1, 1)
    assert tail.advance()
    assert tail.steps == 1
    write_steps(run, 2, 4)
    assert tail.advance()
    os.truncate(run.folder / "metrics.jsonl", 0)  # and was quicker than we looked
    write_steps(run, 1, 5, score=1.0)
    assert tail.advance()
    assert str(tail) == "sparse, seed 0, step 5 of 10: score 1, KL 0.5"
    assert str(Tail(replace(run, panel="8-16-dropout"))) == "8-16-dropout, sparse, seed 0, step 0 of 10"


def test_a_log_gets_lines_and_a_terminal_one_line_that_moves(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    runs = runs_in(tmp_path)
    for stream, clock in ((io.StringIO(), Clock()), (Terminal(), Clock())):
        progress = Progress(tails=[Tail(run) for run in runs], total=20, before=0, stream=stream, clock=clock)
        for run in runs:
            (run.folder / "metrics.jsonl").unlink(missing_ok=True)
        write_steps(runs[0], 1, 4)
        clock.now = 8.0
        progress.look()
        write_steps(runs[1], 1, 1)
        clock.now = LOG_SECONDS + 8.0
        progress.look()
        write_steps(runs[0], 5, 10)
        progress.finished(runs[0])
        said = stream.getvalue()
        assert "sparse, seed 1, step 1 of 10" in said
        assert "finished sparse, seed 0, step 10 of 10: score 1.25, KL 0.5 (11 of 20 steps, 77 s left)\n" in said
        if stream.isatty():
            assert "\r\x1b[K4 of 20 steps | sparse, seed 0, step 4 of 10: s" in said
            assert max(len(part.removeprefix("\x1b[K")) for part in said.split("\r")[:-1]) < 60
        else:
            assert "\r" not in said
            assert "\x1b" not in said
            assert said.startswith("5 of 20 steps")  # the first look was too early for a line
        for run in runs:
            (run.folder / "metrics.jsonl").unlink()


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (119, "119 s"), (150, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said
