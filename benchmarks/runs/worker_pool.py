"""Many runs, a few at a time, in single-thread worker processes: resumable by run, and safe to interrupt."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from types import FrameType

import torch

from benchmarks.base.interruption import ctrl_c_held_from_children
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.run_folder import RECORD, read_record
from benchmarks.runs.progress import LOOK_SECONDS, Progress, Tail
from benchmarks.runs.single_run import Run, execute, in_labels, log_of, run_name
from rlhf_core.files.differences import differences
from rlhf_core.names import counted
from rlhf_core.pages.run_record import SETTINGS
from rlhf_core.run.checkpoint import checkpoints
from rlhf_core.run.freed_memory import keep_freed_memory
from rlhf_core.run.stopping import asked_to_stop


class RunFailed(RuntimeError):
    """A run ended with an error; says which run, the error, and where its traceback stands."""


class Interrupted(RuntimeError):
    """The user ended the experiment; calling it again goes on with the runs that had not finished."""


Executor = Callable[[Sequence[Run], Progress], None]
"""Does the runs that are due, and raises as :func:`run_all` does."""


def run_all(runs: Sequence[Run], processes: int, executor: Executor | None = None) -> None:
    """Do every run that has not finished, ``processes`` at a time, and say on standard error what they are learning.
    With 0 processes they are done in this one, one after the other: what it defines need not be imported then. An
    ``executor`` does them elsewhere, and ``processes`` play no part.

    Raises:
        FileExistsError: a finished run has other settings than the one asked for; nothing is run then.
        RunFailed: a run failed; the others in progress are let finish, the rest is not started.
        Interrupted: Ctrl-C; runs in progress are ended after their step, with a checkpoint to go on from.
    """
    due = [run for run in runs if not finished(run)]
    if already := already_done(runs, due):
        print(already, file=sys.stderr, flush=True)
    if not due:
        return
    for run in due:
        if run.folder.exists() and not (run.folder / SETTINGS).exists():
            shutil.rmtree(run.folder)  # nothing to go on from, and inside a folder that is ours and locked
    if executor is not None:
        executor(due, progress_of(runs, due))
    elif processes:
        _run_in_workers(due, processes, progress_of(runs, due))
    else:
        _run_here(due, progress_of(runs, due))


def _run_in_workers(due: Sequence[Run], processes: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can hang
    pool = ProcessPoolExecutor(
        min(processes, len(due)), mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    )
    try:
        with terminated_like_interrupted():
            with ctrl_c_held_from_children():
                submitted = {pool.submit(_execute, run): run for run in due}
            _await(submitted, progress)
    except KeyboardInterrupt as stop:
        say_asked_to_stop(stop)
        for process in multiprocessing.active_children():
            process.terminate()
        raise interrupted(due) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_here(due: Sequence[Run], progress: Progress) -> None:
    with terminated_like_interrupted():
        for run in due:
            try:
                with _watched(progress):
                    execute(run)
            except (KeyboardInterrupt, SystemExit):  # a run that has begun saves a checkpoint, and exits
                raise interrupted(due) from None
            except Exception as error:
                raise failure(run, error) from error
            progress.finished(run)


@contextlib.contextmanager
def _watched(progress: Progress) -> Iterator[None]:
    """Show progress from another thread while this one is busy with the run."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            progress.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def say_asked_to_stop(stop: KeyboardInterrupt) -> None:
    """Say it once for all workers, which say nothing."""
    print(f"\n{asked_to_stop(stop.args[0] if stop.args else signal.SIGINT)}", file=sys.stderr, flush=True)


def interrupted(due: Sequence[Run]) -> Interrupted:
    """What to raise when the user ended the experiment while these runs were due."""
    done = sum(finished(run) for run in due)
    return Interrupted(
        f"interrupted: {done} of {counted(len(due), 'due run')} finished; the same call goes on with the others"
    )


def already_done(runs: Sequence[Run], due: Sequence[Run]) -> str:
    """How much of ``runs`` earlier calls did, where only ``due`` have not finished: whole runs, and the steps up to the
    checkpoints that the others go on from. Empty if nothing."""
    total = sum(run.steps for run in runs)
    steps = total - sum(run.steps - steps_saved(run) for run in due)
    if not steps:
        return ""
    whole = f"{len(runs) - len(due)} of {len(runs)} runs and " if len(runs) > 1 else ""
    return f"goes on from what is there: {whole}{steps} of {counted(total, 'step')} done before"


def steps_saved(run: Run) -> int:
    """Steps of the newest checkpoint of a run; 0 without one, as it then begins again."""
    saved = checkpoints(run.folder) if run.folder.is_dir() else []
    return min(run.steps, int(saved[0].name.rpartition("-")[2])) if saved else 0


def failure(run: Run, error: BaseException) -> RunFailed:
    """The error of a run that failed, in words."""
    plain = isinstance(error, ValueError | OSError | RuntimeError)
    said = in_labels(run.arm, f"{error}") if plain else f"{type(error).__name__}: {error}"
    return RunFailed(f"{run_name(run)} failed: {said} (more in {log_of(run)})")


def progress_of(runs: Sequence[Run], due: Sequence[Run]) -> Progress:
    """Progress over all steps of ``runs``, of which only the ``due`` ones are under way; steps that they took earlier,
    before they were cut short, are done."""
    tails = [Tail(run) for run in due]
    for tail in tails:
        tail.advance()
    total = sum(run.steps for run in runs)
    return Progress(tails=tails, total=total, before=total - sum(run.steps for run in due))


def _await(run_of: Mapping[Future[None], Run], progress: Progress) -> None:
    """Watch the runs; raises RunFailed naming the first that failed."""
    pending = set(run_of)
    while pending:
        done, pending = wait(pending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            run, error = run_of[future], future.exception()
            if error is not None:
                raise failure(run, error) from error
            progress.finished(run)
        progress.look()


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the experiment as Ctrl-C does: runs in progress get to save. The KeyboardInterrupt then holds the
    signal's number; that of Ctrl-C holds nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


@dataclass
class _Worker:
    """The state of a worker process. It never exits by itself: a pool that loses a worker kills the others while they
    save."""

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
