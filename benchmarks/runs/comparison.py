"""A comparison: its settings, its runs in panels, one claimed folder, and all curves.

A *panel* is a group of runs under changed PPO settings or another sampler; every panel runs every arm under every seed.
Runs stand in OUT/runs/[PANEL/]ARM/seed-N, so scripts that need the same runs can share an OUT: what has run is never
repeated.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.base.json_files import jsonable
from benchmarks.base.run_folder import claim_folder, require_claimable, run_record
from benchmarks.reporting.paper_curves import require_same_task
from benchmarks.reporting.statistics import Results
from benchmarks.runs.arms import PAPER_SETTINGS, Arm, parse_arms, with_settings
from benchmarks.runs.finished_runs import load_results
from benchmarks.runs.single_run import PLACES, Run, Task, require_runnable
from benchmarks.runs.worker_pool import locked, run_all
from benchmarks.tasks.definitions import make_task
from benchmarks.tasks.model_settings import Loading
from rlhf_core.config import PPOConfig

MADE_BY = "a comparison"
MAY_CHANGE = ("redistributors", "controls", "seeds", "processes", "save_every", "options", "paper_curves", *PLACES)
"""What a later call may ask for differently: it adds runs or pictures, and changes no run that is there."""
TASK_SETTINGS = ("models", "cache", "policy", "reward", "data", "template", "reward_template", "loading")


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Compare redistributors on paired seeds; settings of PPO are --ppo.NAME, on top of the task's own."""

    task: Literal["toy", "positive_generation", "summarisation", "dialogue"] = "toy"
    """The embedded task, or one of the paper's (see --models)."""
    models: str | None = None
    """The folder that benchmarks.prepare made; without it the task's hub models are downloaded (toy: its own)."""
    cache: str | None = None
    """toy: the folder that keeps its models, trained once."""
    policy: str | None = None
    """Without --models: the policy, folder or hub name, instead of the task's."""
    reward: str | None = None
    """Without --models: the reward model, folder or hub name, instead of the task's."""
    data: str | None = None
    """Without --models: where prompts come from, a file or hub:NAME, instead of the task's."""
    template: str | None = None
    """Without --models: prompt template of summarisation or dialogue (see benchmarks.data.templates)."""
    reward_template: str | None = None
    """Without --models: the reward model's own."""
    loading: Loading = field(default_factory=Loading)
    """How the models are held."""
    out: str = "runs/comparison"
    """Folder of the results. Calling again with the same settings resumes; arms and seeds may be added."""
    redistributors: str | list[str] = "sparse,uniform,abc"
    """Arms: names, with settings as uniform(beta=0.8) and changed PPO settings as sparse@lam=1; a method of your own as
    package.module.Class."""
    controls: str | list[str] = "sparse@lam=1"
    """Arms run besides: part of what dense credit buys at lam 0.95, sparse gets from lam 1. Empty for none."""
    seeds: int | list[int] = 5
    """How many (0, 1, ...), or which."""
    steps: int = 60
    """PPO steps of a run."""
    eval_every: int = 20
    """Steps between evaluations on held-out prompts."""
    eval_prompts: int = 64
    """Held-out prompts evaluated on."""
    save_every: int = 0
    """Steps between checkpoints that a killed run goes on from; 0: it begins again. Ctrl-C saves one in any case."""
    processes: int = 2
    """Runs at a time, each in a process of its own with one thread."""
    paper_curves: str | None = None
    """The paper's own curves (paper_curves.json.gz), to be drawn behind ours where the task is the same."""
    overwrite: bool = False
    """Delete what an earlier comparison left in the out folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "eval_prompts", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.save_every < 0:
            raise ValueError(f"save_every must be 0 or more, got {self.save_every}")
        seeds = self.seed_list()
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be different numbers, 0 or more, and at least one, got {self.seeds}")
        if self.models is not None:
            beside = [name for name in ("policy", "reward", "data", "template") if getattr(self, name) is not None]
            if beside:
                raise ValueError(f"--models {self.models} holds policy, reward and prompts: leave out {beside}")
        if self.paper_curves is not None and not Path(self.paper_curves).is_file():
            raise ValueError(f"paper_curves: no file {self.paper_curves}")
        require_same_task(self.paper_curves, self.task)

    def seed_list(self) -> list[int]:
        """The seeds, written out."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def arms(self) -> tuple[Arm, ...]:
        """Redistributors, then the controls that are not among them.

        Raises:
            ValueError: none, or one that cannot be.
        """
        asked = parse_arms(self.redistributors)
        labels = {arm.label for arm in asked}
        arms = (*asked, *(arm for arm in parse_arms(self.controls) if arm.label not in labels))
        if not arms:
            raise ValueError("no arms: name at least one redistributor")
        return arms

    def make_task(self) -> Task:
        """The task, with the settings that are given."""
        return make_task(self.task, **{name: getattr(self, name) for name in TASK_SETTINGS})


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
    settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], panels: Sequence[Panel], options: object = None
) -> ComparisonResults:
    """Run what has not run, and read all curves. ``ppo`` changes the task's PPO settings.

    Raises:
        FileExistsError: the folder holds a comparison with other settings, all named, or something that is not ours.
        ValueError: an arm or a setting that cannot be; found before anything is trained with PPO.
    """
    out, config = Path(settings.out), ppo_of(task, ppo)
    if settings.models is not None and Path(settings.models).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--out {out} would hold the models of --models {settings.models}; choose another")
    recorded = {**jsonable(settings), **jsonable({"task_settings": task, "ppo": config, "options": options})}
    record = run_record(recorded, {}, made_by=MADE_BY)
    require_claimable(out, record, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    runs_of = {panel.name: plan(settings, task, panel, config) for panel in panels}
    fingerprint = _checked(task, [run for some in runs_of.values() for run in some])
    runs_of = {name: [replace(run, fingerprint=fingerprint) for run in some] for name, some in runs_of.items()}
    record["datasets"] = {"prompts and models": fingerprint}
    with locked(out):
        claim_folder(out, record, overwrite=settings.overwrite, may_change=MAY_CHANGE)
        run_all([run for some in runs_of.values() for run in some], settings.processes)
    results = {name: load_results(settings.task, some) for name, some in runs_of.items()}
    return ComparisonResults(settings=settings, task=task, config=config, results=results)


def _checked(task: Task, runs: Sequence[Run]) -> str:
    """The task's fingerprint, after every kind of run was found possible. The models are let go again: a card holds
    those of one process at a time."""
    loaded = task.load()
    for run in {run.folder.parent: run for run in runs}.values():  # one seed speaks for all
        require_runnable(loaded, run)
    fingerprint = loaded.fingerprint
    del loaded
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return fingerprint


def plan(settings: ComparisonSettings, task: Task, panel: Panel, config: PPOConfig) -> list[Run]:
    """A run for every arm and seed of the panel; ``config`` is what all panels start from."""
    config = with_settings(config, panel.changes)
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
            folder=Path(settings.out) / "runs" / panel.name / arm.label / f"seed-{seed}",
        )
        for arm in (settings.arms() if panel.arms is None else panel.arms)
        for seed in settings.seed_list()
    ]


def ppo_of(task: Task, ppo: Mapping[str, Any]) -> PPOConfig:
    """The task's PPO settings, changed by ``ppo``."""
    return with_settings(with_settings(PAPER_SETTINGS, task.ppo), ppo)


def length_changes(low: int, high: int) -> dict[str, Any]:
    """PPO settings of responses of ``low`` tokens at least, whose maxima are drawn below ``high``, as by the paper's
    sampler; raises ValueError for an empty range."""
    if not 1 <= low < high:
        raise ValueError(f"lengths must be ranges (low, high) with 1 <= low < high, got {(low, high)}")
    return {"min_length": low, "max_length": [low, high - 1]}
