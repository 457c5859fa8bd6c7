"""A comparison: its runs in panels, one claimed folder, and all curves.

A *panel* is a group of runs under changed PPO settings or another sampler; every panel runs every arm under every seed.
Runs stand in OUT/runs/[PANEL/]ARM/seed-N, so scripts that need the same runs can share an OUT: what has run is never
repeated.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.base.command_line import program
from benchmarks.base.folder_lock import locked
from benchmarks.base.json_files import jsonable
from benchmarks.base.run_folder import claim_folder, require_claimable, run_record
from benchmarks.reporting.curve_readings import REFERENCE
from benchmarks.reporting.primary_outcome import differences_to_reference, hopeless
from benchmarks.reporting.sequential import looks
from benchmarks.reporting.statistics import FEWEST_SEEDS, Results
from benchmarks.runs.arms import Arm
from benchmarks.runs.finished_runs import ended_on, load_results
from benchmarks.runs.pilot import pilot_runs, planned, what_can_be_found
from benchmarks.runs.ppo_settings import PAPER_SETTINGS, with_settings
from benchmarks.runs.ray_pool import chosen_executor
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import PLACES, Run, Task, require_prompts, require_runnable, require_scored
from benchmarks.runs.worker_pool import RunFailed, finished, run_all
from rlhf_core.advantages import ESTIMATORS
from rlhf_core.config import PPOConfig
from rlhf_core.names import counted

MADE_BY = "a comparison"
MAY_CHANGE = (
    *("redistributors", "controls", "seeds", "processes", "executor", "ray_address", "gpus_per_run", "save_every"),
    *("options", "paper_curves", "power", *PLACES),
)
"""What a later call may ask for differently: it adds runs or pictures, and changes no run that is there."""

LOOKED_AT = ("redistributors", "controls", "seeds")
"""Of these, what a comparison that looks several times may not change."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Runs under the same changes: ``name`` is their folder and title, "" where there is one panel only."""

    name: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """PPO settings, beneath those of the arms."""
    sampler: str = "matched"
    """How responses are drawn: a name of ``benchmarks.runs.samplers``."""
    arms: tuple[Arm, ...] | None = None
    """Arms of its own; None for the comparison's."""
    task: Callable[[Task], Task] = lambda task: task
    """What the panel makes of the task; a run is sent to another process, so the result must be picklable."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparisonResults:
    """Everything that ran: curves by panel, and what they were made with."""

    settings: ComparisonSettings
    task: Task
    config: PPOConfig
    results: Mapping[str, Results]

    @property
    def only(self) -> Results:
        """The one panel's curves."""
        (results,) = self.results.values()
        return results


def run_comparison(
    settings: ComparisonSettings,
    task: Task,
    ppo: Mapping[str, Any],
    panels: Sequence[Panel],
    options: object = None,
    *,
    say: Callable[[str], object] = print,
) -> ComparisonResults:
    """Run what has not run, and read all curves. ``ppo`` changes the task's PPO settings. ``say`` is handed, line by
    line, what the comparison can find, once its pilot has run.

    Raises:
        FileExistsError: the folder holds a comparison with other settings, all named, or something that is not ours.
        ValueError: an arm or a setting that cannot be; found before anything is trained with PPO.
        RunFailed, Interrupted: as from :func:`benchmarks.runs.worker_pool.run_all`.
    """
    if settings.until is not None:
        _require_pilot(settings, task, ppo, panels)
    with _claimed(settings, task, ppo, panels, options) as runs_of:
        runs = [run for some in runs_of.values() for run in some]
        if all(map(finished, runs)):
            print(_all_finished(runs, settings), file=sys.stderr, flush=True)
        else:
            _run_pilot(runs, settings, say)
        if settings.until is None:
            _run_or_say_what_is_there(runs, settings)
            results = {name: load_results(settings.task, some) for name, some in runs_of.items()}
        else:
            results = {panels[0].name: _until_decided(runs, settings, say)}
    return ComparisonResults(settings=settings, task=task, config=ppo_of(task, ppo), results=results)


def run_pilot(
    settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], panels: Sequence[Panel], options: object = None
) -> None:
    """Run the pilot alone, which a later :func:`run_comparison` in the same folder goes on from, and print what the
    comparison can find.

    Raises:
        ValueError: no pilot is possible: sparse is not among the arms of the one panel, or has fewer than
            ``FEWEST_SEEDS`` seeds.
        FileExistsError, RunFailed, Interrupted: as from :func:`run_comparison`.
    """
    _require_pilot(settings, task, ppo, panels)
    with _claimed(settings, task, ppo, panels, options) as runs_of:
        _run_pilot([run for some in runs_of.values() for run in some], settings, print)


@contextmanager
def _claimed(
    settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], panels: Sequence[Panel], options: object
) -> Iterator[dict[str, list[Run]]]:
    """The runs by panel, checked, in a folder that no other process uses meanwhile."""
    out, config = Path(settings.out), ppo_of(task, ppo)
    record = require_free(settings, task, config, options)
    runs_of = {panel.name: plan(settings, task, panel, config) for panel in panels}
    fingerprint = _checked(task, [run for some in runs_of.values() for run in some])
    record["datasets"] = {"prompts and models": fingerprint}
    with locked(out):
        claim_folder(out, record, overwrite=settings.overwrite, may_change=_may_change(settings))
        yield {name: [replace(run, fingerprint=fingerprint) for run in some] for name, some in runs_of.items()}


def _require_pilot(settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], panels: Sequence[Panel]) -> None:
    runs = [run for panel in panels for run in plan(settings, task, panel, ppo_of(task, ppo))]
    if not _pilot_of(runs):
        raise ValueError(
            f"--power and --until need {REFERENCE} and another arm, with {FEWEST_SEEDS} seeds or more, and a script of "
            f"one panel; got --redistributors {settings.redistributors}, --seeds {settings.seeds}"
        )


def _pilot_of(runs: Sequence[Run]) -> list[Run]:
    return pilot_runs(runs) if len({run.panel for run in runs}) == 1 else []


def _run_pilot(runs: Sequence[Run], settings: ComparisonSettings, say: Callable[[str], object]) -> None:
    """Run the pilot, if these runs have one, and say what they can find."""
    pilot = _pilot_of(runs)
    if not pilot:
        return
    if not all(map(finished, pilot)):
        _run_or_say_what_is_there(pilot, settings)
    for line in what_can_be_found(pilot, planned(runs, at_a_time=max(settings.processes, 1))):
        say(line)


def _until_decided(runs: Sequence[Run], settings: ComparisonSettings, say: Callable[[str], object]) -> Results:
    """Run so many seeds, look, and go on until every difference to sparse is decided or hopeless, or no seed is left;
    the results of those that ran."""
    by_seed = sorted(runs, key=lambda run: run.config.seed)
    seeds = sorted(settings.seed_list())
    for look in looks(len(seeds), len({run.arm.label for run in runs}) - 1):
        some = [run for run in by_seed if run.config.seed in seeds[: look.seeds]]
        _run_or_say_what_is_there(some, settings)
        results = replace(load_results(settings.task, some), most=len(seeds))
        decided = [arm for arm, found in differences_to_reference(results).items() if found.decided]
        hopeless_ones = hopeless(results)
        say(
            f"look after {look.seeds} of at most {len(seeds)} seeds: decided {', '.join(decided) or 'nothing'}; "
            f"hopeless {', '.join(hopeless_ones) or 'nothing'}"
        )
        if len(decided) + len(hopeless_ones) == len(results.arms) - 1:
            break
    return results


def _run_or_say_what_is_there(runs: Sequence[Run], settings: ComparisonSettings) -> None:
    """Run all; where one fails, its error says that a page of the finished ones can be written."""
    try:
        run_all(runs, settings.processes, chosen_executor(settings))
    except RunFailed as failed:
        done = sum(map(finished, runs))
        if not done:
            raise
        some = f"finished: {done} of {counted(len(runs), 'run')}"
        raise RunFailed(f"{failed}\n{some}; {program()} report {settings.out} writes a page of them") from failed


def _all_finished(runs: Sequence[Run], settings: ComparisonSettings) -> str:
    """One line: when they finished, and how to run more, longer, or again."""
    which = "the one run has" if len(runs) == 1 else f"all {len(runs)} runs have"
    return (
        f"{which} finished at step {settings.steps}{ended_on(runs)}, so nothing is trained; table and page are "
        "written again. For more runs add --redistributors or --seeds, for longer runs give more --steps and another "
        "--out, to start anew add --overwrite true"
    )


def _may_change(settings: ComparisonSettings) -> tuple[str, ...]:
    """Where the comparison looks several times, its arms and seeds decide when, and are fixed beforehand."""
    return tuple(name for name in MAY_CHANGE if settings.until is None or name not in LOOKED_AT)


def require_free(settings: ComparisonSettings, task: Task, config: PPOConfig, options: object = None) -> dict[str, Any]:
    """The record of a comparison whose folder may be its own; nothing is written.

    Raises:
        FileExistsError: the folder holds a comparison with other settings, all named, or something that is not ours.
        ValueError: the folder would hold the models it is made from.
    """
    out = Path(settings.out)
    if settings.models is not None and Path(settings.models).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--out {out} would hold the models of --models {settings.models}; choose another")
    recorded = {
        **jsonable(settings),
        "task_settings": jsonable(task),
        "ppo": jsonable(config),
        "options": jsonable(options),
    }
    record = run_record(recorded, {}, made_by=MADE_BY)
    require_claimable(out, record, overwrite=settings.overwrite, may_change=_may_change(settings))
    return record


def _checked(task: Task, runs: Sequence[Run]) -> str:
    """The task's fingerprint, after every kind of run was found possible. The models are let go again: a card holds
    those of one process at a time."""
    loaded = task.load()
    require_prompts(loaded, runs)
    for run in {run.folder.parent: run for run in runs}.values():  # one seed speaks for all
        require_runnable(loaded, run)
    require_scored(loaded, runs[0].config)
    fingerprint = loaded.fingerprint
    del loaded
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return fingerprint


def plan(settings: ComparisonSettings, task: Task, panel: Panel, config: PPOConfig) -> list[Run]:
    """A run for every arm and seed of the panel; ``config`` is what all panels start from.

    Raises:
        ValueError: seeds of single arms, in a script that has several panels or arms of its own, or of an arm that is
            left out because it repeats another.
    """
    if settings.seeds_of is not None and (panel.name or panel.arms is not None):
        raise ValueError(
            f"--seeds_of {settings.seeds_of} is for a script with one panel and the arms of --redistributors, such as "
            "compare; leave it out here"
        )
    own = settings.own_seed_lists()
    config = with_settings(config, panel.changes)
    arms = _without_repeats(settings, config) if panel.arms is None else panel.arms
    if repeats := own.keys() - {arm.label for arm in arms}:
        raise ValueError(f"--seeds_of names {min(repeats)}, which repeats another arm and is left out; name that one")
    return [
        Run(
            task=panel.task(task),
            fingerprint="",
            arm=arm,
            config=replace(with_settings(config, arm.changes), seed=seed),
            steps=settings.steps,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            eval_prompts=settings.eval_prompts,
            sampler=panel.sampler,
            panel=panel.name,
            folder=Path(settings.out) / "runs" / panel.name / arm.label / f"seed-{seed}",
        )
        for arm in arms
        for seed in own.get(arm.label, settings.seed_list())
    ]


def left_out(settings: ComparisonSettings, panels: Sequence[Panel], config: PPOConfig) -> list[str]:
    """Labels of the controls that :func:`plan` leaves out because they repeat an arm."""
    planned = [panel for panel in panels if panel.arms is None]
    repeats = (_repeats(settings, with_settings(config, panel.changes)) for panel in planned)
    return list(dict.fromkeys(label for labels in repeats for label in labels))


def _without_repeats(settings: ComparisonSettings, config: PPOConfig) -> list[Arm]:
    repeats = _repeats(settings, config)
    return [arm for arm in settings.arms() if arm.label not in repeats]


def _repeats(settings: ComparisonSettings, config: PPOConfig) -> set[str]:
    """Labels of the added controls whose runs would repeat those of another arm, number by number."""
    controls = settings.added_controls()
    others = [arm for arm in settings.arms() if arm not in controls]
    return {control.label for control in controls if any(_alike(control, arm, config) for arm in others)}


def _alike(control: Arm, arm: Arm, config: PPOConfig) -> bool:
    """Whether two arms are the same method with the same settings. λ counts only with a critic: no other estimator
    reads it."""
    one, other = (with_settings(config, each.changes) for each in (control, arm))
    if not ESTIMATORS[one.advantages].critic:
        one = replace(one, lam=other.lam)
    return (control.method, control.settings, one) == (arm.method, arm.settings, other)


def announced(settings: ComparisonSettings, runs: Sequence[Run], left_out: Sequence[str] = ()) -> tuple[str, str]:
    """What is about to run, in two lines: first how long responses are, which decides what can be said at all, then how
    many runs there are, how many of them at a time, and which controls were ``left_out``."""
    low, high = min(run.config.min_length for run in runs), max(run.config.max_length[1] for run in runs)
    sizes = " or ".join(map(str, sorted({run.config.rollout_batch_size for run in runs})))
    labels = dict.fromkeys(run.arm.label for run in runs)
    controls = [arm.label for arm in settings.added_controls() if arm.label in labels]
    besides = "runs besides as a control; --controls '' leaves it out"
    if len(controls) > 1:
        besides = "run besides as controls; --controls '' leaves them out"
    added = f" ({', '.join(controls)} {besides})" if controls else ""
    if left_out:
        added += f" (without the control {', '.join(left_out)}, which would repeat another arm with these settings)"
    return (
        f"{settings.task}: responses of {low} to {high} tokens, {sizes} a step (--ppo.max_length, "
        "--ppo.rollout_batch_size)",
        f"{', '.join(labels)}{added}: {counted(len(runs), 'run')} of {counted(settings.steps, 'step')}"
        f"{_at_a_time(settings, len(runs))}, in {settings.out}",
    )


def _at_a_time(settings: ComparisonSettings, runs: int) -> str:
    if runs == 1:
        return ""
    if settings.executor == "ray":
        return ", as many at a time as the Ray cluster has room for"
    if settings.processes == 0:
        return ", one after the other (processes=2 runs two at a time)"
    return f", {min(settings.processes, runs)} at a time"


def ppo_of(task: Task, ppo: Mapping[str, Any]) -> PPOConfig:
    """The task's PPO settings, changed by ``ppo``."""
    return with_settings(with_settings(PAPER_SETTINGS, task.ppo), ppo)
