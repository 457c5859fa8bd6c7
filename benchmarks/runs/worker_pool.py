"""Many runs, a few at a time, in single-thread worker processes: resumable by run, and safe to interrupt."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import RECORD, read_record
from benchmarks.runs.single_run import Run, execute
from rlhf_core.files.differences import differences
from rlhf_core.run.freed_memory import keep_freed_memory
from rlhf_core.run.run_folder import SETTINGS


class Interrupted(RuntimeError):
    """The user ended the experiment; calling it again goes on with the runs that had not finished."""


def run_all(runs: Sequence[Run], processes: int) -> None:
    """Do every run that has not finished, ``processes`` at a time, with one progress bar over all steps.

    Raises:
        FileExistsError: a finished run has other settings than the one asked for; nothing is run then.
        RuntimeError: a run failed; the others in progress are let finish, the rest is not started.
        Interrupted: Ctrl-C; runs in progress are ended after their step, with a checkpoint to go on from.
    """
    due = [run for run in runs if not finished(run)]
    with tqdm(total=sum(run.steps for run in runs), unit="step", dynamic_ncols=True, desc="runs") as bar:
        if due:
            _run_due(due, processes, bar, sum(run.steps for run in runs) - sum(run.steps for run in due))
        bar.update(sum(run.steps for run in runs) - bar.n)


def _run_due(due: Sequence[Run], processes: int, bar: "tqdm[Any]", before: int) -> None:
    for run in due:
        if run.folder.exists() and not (run.folder / SETTINGS).exists():
            shutil.rmtree(run.folder)  # nothing to go on from, and inside a folder that is ours and locked
    bar.update(before)
    bar.unpause()
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can hang
    pool = ProcessPoolExecutor(
        min(processes, len(due)), mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    )
    try:
        with _terminated_like_interrupted():
            _await([(pool.submit(_execute, run), run) for run in due], bar, before)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise Interrupted(
            f"interrupted: {sum(finished(run) for run in due)} of {len(due)} runs that were due have finished; the "
            "same command goes on with the others"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _await(submitted: Sequence[tuple[Future[None], Run]], bar: "tqdm[Any]", before: int) -> None:
    """Watch the runs; raises RuntimeError naming the first that failed."""
    run_of = dict(submitted)
    pending = set(run_of)
    while pending:
        done, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
        bar.update(before + sum(_steps_done(run) for run in run_of.values()) - bar.n)
        for future in done:
            error = future.exception()
            if error is not None:
                run = run_of[future]
                raise RuntimeError(f"{run.arm.label}, seed {run.config.seed} failed: {error}") from error


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the experiment as Ctrl-C does: runs in progress get to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Worker:
    """What a worker process is doing. It never exits of itself: a pool that loses one kills the others as they save."""

    stopping: bool = False
    busy: bool = False

    def stop(self, *_: object) -> None:
        """Answer SIGTERM where ``fit`` does not: give up the run that is being loaded or measured, begin no other."""
        self.stopping = True
        if self.busy:
            raise SystemExit(143)


_worker = _Worker()


def _execute(run: Run) -> None:
    if _worker.stopping:
        raise SystemExit(143)
    _worker.busy = True
    try:
        execute(run)
    except SystemExit:
        _worker.stopping = True
        raise
    finally:
        _worker.busy = False


def _start_worker(parent: int) -> None:
    """One thread, its own freed memory; Ctrl-C is the parent's to answer; and no worker outlives it."""
    signal.signal(signal.SIGTERM, _worker.stop)
    torch.set_num_threads(1)
    keep_freed_memory()
    quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _steps_done(run: Run) -> int:
    """Lines of the run's metrics so far."""
    metrics = run.folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def finished(run: Run) -> bool:
    """Whether the run is complete; raises FileExistsError, naming every difference, if it had other settings."""
    record = run.folder / RECORD
    if not record.exists():
        return False
    changed = differences(read_record(run.folder, "settings")["settings"], run.settings())
    if changed:
        raise FileExistsError(
            f"{run.folder} holds a finished run with other settings ({'; '.join(changed)}); "
            "choose another --out, or pass --overwrite true"
        )
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to run in ``folder``, as long as this process lives.

    Raises:
        FileExistsError: another process has it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise FileExistsError(f"another process works in {folder}; wait for it, or choose another --out") from None
