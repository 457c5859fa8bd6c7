"""One arm under one seed, in its own folder: a run to inspect, keep and continue."""

import json
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.base.folder_lock import locked
from benchmarks.base.quiet_libraries import quietly
from benchmarks.base.run_folder import RECORD, read_record
from benchmarks.reporting.ruined_runs import ruined_runs
from benchmarks.runs.comparison import Panel, announced, plan, ppo_of
from benchmarks.runs.finished_runs import ended_on
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import Run, log_of, require_prompts, require_runnable, require_scored, run_name, train
from benchmarks.runs.worker_pool import already_done, failure, steps_saved
from benchmarks.tasks.loaded import Loaded
from models.policy.publishing import push_to_hub, require_shared_base
from rlhf_core.files.differences import differences
from rlhf_core.pages.run_record import PAGE, read_run
from rlhf_core.run.checkpoint import POLICY, checkpoints, newest_complete
from rlhf_core.run.run_folder import RunFolder


class NotPushed(RuntimeError):
    """The run has finished and its policy is on the disk, but not on the hub; says why and how to push it again."""


@quietly()
def run_training(settings: ComparisonSettings, ppo: Mapping[str, Any], *, push_to: str | None = None) -> Path:
    """Train, or go on with, the one run that the settings ask for; the folder of the policy it ended with. That is
    uploaded to the hub repository ``push_to``, where one is named.

    Raises:
        FileExistsError: the folder holds something else than a run.
        ValueError: settings, prompts or models that cannot be, or others than the run in the folder has.
        RunFailed: anything else that ended it, with the place of its traceback.
        NotPushed: the run finished, but the upload failed.
        SystemExit: Ctrl-C; a checkpoint to go on from was saved.
    """
    task, console = settings.make_task(), Console()
    (planned,) = plan(settings, task, Panel(), ppo_of(task, ppo))
    run = replace(planned, folder=Path(settings.out))
    with locked(run.folder):
        _make_room(run, overwrite=settings.overwrite)
        ended = _has_ended(run)
        for line in [] if ended else announced(settings, [run]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        loaded = task.load()
        if push_to is not None:
            require_shared_base(loaded.policy)
        run = replace(run, fingerprint=loaded.fingerprint)
        said = _says_it_ended(run) if ended and _trained_on(run) == run.fingerprint else _trained(run, loaded)
    policy = checkpoints(run.folder)[0] / POLICY
    console.print(f"{said}\n{policy}", markup=False, highlight=False, soft_wrap=True)
    if warning := ruined_runs({run_name(run): read_run(run.folder)}):
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    if push_to is not None:
        _push(policy, push_to, console)
    return policy


def _trained(run: Run, loaded: Loaded) -> str:
    """Take the steps that are due; what was written, in a line that the policy's folder ends."""
    require_prompts(loaded, [run])
    require_runnable(loaded, run)
    require_scored(loaded, run.config)
    if already := already_done([run], [run]):
        print(already, file=sys.stderr, flush=True)
    try:
        figures = train(run, loaded)
    except (ValueError, OSError):
        raise
    except Exception as error:
        with log_of(run).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        raise failure(run, error) from error
    return (
        f"held-out score {figures['held_out_score']:z.4g}; written to {run.folder}: {PAGE}, metrics.jsonl, "
        "samples.jsonl, run.json, the policy in"
    )


def _has_ended(run: Run) -> bool:
    """Whether the folder holds this run with all of its steps taken and its last checkpoint whole."""
    if not (run.folder / RECORD).is_file() or differences(
        read_record(run.folder, "settings")["settings"], run.settings()
    ):
        return False
    newest, passed_over = newest_complete(run.folder)
    return newest is not None and not passed_over and steps_saved(run) == run.steps


def _trained_on(run: Run) -> object:
    """The fingerprint of the prompts and models of the run that has ended in the folder."""
    return read_record(run.folder, "datasets")["datasets"].get("prompts and models")


def _says_it_ended(run: Run) -> str:
    """One line on a run that has ended, which the policy's folder ends."""
    return (
        f"{run.folder} finished at step {run.steps}{ended_on([run])}; its page is {run.folder / PAGE}. To train "
        "longer, raise --steps; to start anew, add --overwrite true. The policy is in"
    )


def _push(policy: Path, repo_id: str, console: Console) -> None:
    """Whatever goes wrong, the run is finished and its policy is there: say how to try again."""
    try:
        pushed = push_to_hub(policy, repo_id)
    except Exception as error:
        why = f"{type(error).__name__}: {error}" + (f" ({error.__cause__})" if error.__cause__ else "")
        call = f"from models import push_to_hub; push_to_hub({json.dumps(str(policy))}, {json.dumps(repo_id)})"
        raise NotPushed(
            f"the run has finished, and its policy is in {policy}, but it was not pushed to {repo_id}: {why}"
            f"\nTo push it again: python -c {shlex.quote(call)}"
        ) from error
    without = f"; left out: {', '.join(pushed.left_out)}" if pushed.left_out else ""
    said = f"pushed to {pushed.url}: {', '.join(pushed.files)}{without}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def _make_room(run: Run, *, overwrite: bool) -> None:
    """Delete an earlier run where that is asked for; nothing else is ever deleted."""
    there = RunFolder(run.folder)
    if not there.begun:
        there.require_free()
    elif overwrite:
        shutil.rmtree(run.folder)
