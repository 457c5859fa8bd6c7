"""The main job: redistributors × paired seeds on one task, then table, figures, heat map and one honest sentence.

``python -m benchmarks.value_loss_variance --out DIR`` compares sparse, uniform and abc on the embedded task. A run that
has finished is never repeated: call again to resume, or to add arms or seeds. DIR then holds run.json (settings,
versions, git state), table.md, table.csv, results.json, heatmap.html, figures/ and runs/ARM/seed-N/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from benchmarks import figures, report, viewer
from benchmarks.cli import claim_folder, command_line, jsonable, require_claimable, run_record
from benchmarks.experiment import Arm, Run, Task, examples, load_results, parse_arms, run_all, with_settings
from benchmarks.tasks import make_task
from rlhf_core.config import PPOConfig

EXAMPLES = 6
MAY_CHANGE = ("redistributors", "controls", "seeds", "processes")
"""What a later call may ask for differently: it adds runs, and changes none that are there."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compare redistributors on paired seeds; settings of PPO are --ppo.NAME, on top of the task's own."""

    task: Literal["toy", "positive_generation"] = "toy"
    """The embedded task, or GPT-2-like models on film reviews (see --models)."""
    models: str | None = None
    """positive_generation: the folder that benchmarks.prepare made; without it hub models are downloaded."""
    cache: str | None = None
    """toy: the folder that keeps its models, trained once."""
    out: str = "runs/value_loss_variance"
    """Folder of the results. Calling again with the same settings resumes; arms and seeds may be added."""
    redistributors: str | list[str] = "sparse,uniform,abc"
    """Arms: names, with settings as uniform(beta=0.8) and changed PPO settings as sparse@lam=1."""
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
    processes: int = 2
    """Runs at a time, each in a process of its own with one thread."""
    overwrite: bool = False
    """Delete what an earlier comparison left in the out folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "eval_prompts", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        seeds = self.seed_list()
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be different numbers, 0 or more, and at least one, got {self.seeds}")

    def seed_list(self) -> list[int]:
        """The seeds, written out."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def arms(self) -> tuple[Arm, ...]:
        """Redistributors, then the controls that are not among them."""
        asked = parse_arms(self.redistributors)
        labels = {arm.label for arm in asked}
        return (*asked, *(arm for arm in parse_arms(self.controls) if arm.label not in labels))


def compare(settings: Comparison, task: Task, ppo: Mapping[str, Any], console: Console) -> report.Report:
    """Run what has not run, write everything under ``settings.out``, print table, heat map and verdict.

    ``ppo`` changes the task's PPO settings. Loading the task first trains models that are trained only once.

    Raises:
        FileExistsError: the folder holds a comparison with other settings, all named, or something that is not ours.
        ValueError: an arm or a setting that cannot be.
    """
    arms, out = settings.arms(), Path(settings.out)
    if len(arms) == 0:
        raise ValueError("no arms: name at least one redistributor")
    config = with_settings(with_settings(PPOConfig(), task.ppo), ppo)
    recorded = {**jsonable(settings), "task_settings": jsonable(task), "ppo": jsonable(config)}
    require_claimable(out, recorded, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    loaded = task.load()
    runs = plan(settings, task, loaded.fingerprint, config)
    record = run_record(recorded, {"prompts and models": loaded.fingerprint})
    claim_folder(out, record, overwrite=settings.overwrite, may_change=MAY_CHANGE)
    run_all(runs, settings.processes)
    results = load_results(settings.task, [arm.label for arm in arms], runs)
    shown = examples(loaded, arms, replace(config, seed=settings.seed_list()[0]), loaded.held_out_prompts[:EXAMPLES])
    summary = report.build(results)
    report.write(summary, out)
    figures.write(results, shown[0], out / "figures")
    viewer.write(f"Credit on {settings.task}", shown, out / "heatmap.html")
    _print(summary, shown, out, console)
    return summary


def plan(settings: Comparison, task: Task, fingerprint: str, config: PPOConfig) -> list[Run]:
    """A run for every arm and seed; ``config`` is what all arms start from."""
    return [
        Run(
            task=task,
            fingerprint=fingerprint,
            arm=arm,
            config=replace(with_settings(config, arm.changes), seed=seed),
            steps=settings.steps,
            eval_every=settings.eval_every,
            eval_prompts=settings.eval_prompts,
            folder=Path(settings.out) / "runs" / arm.label / f"seed-{seed}",
        )
        for arm in settings.arms()
        for seed in settings.seed_list()
    ]


def _print(summary: report.Report, shown: Sequence[viewer.Example], out: Path, console: Console) -> None:
    console.print(viewer.terminal(shown[:2]))
    console.print(report.terminal(summary, console.width))
    for note in summary.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"\n{summary.verdict}\n", style="bold", markup=False, highlight=False)
    console.print(f"written to {out}: table.md, results.json, figures/, heatmap.html", markup=False, highlight=False)


def make_parser() -> ArgumentParser:
    """Flags of the comparison, and every PPO setting but the seed as --ppo.NAME."""
    parser = command_line(Comparison, "benchmarks.value_loss_variance")
    parser.add_class_arguments(PPOConfig, "ppo", skip={"seed"})
    return parser


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = make_parser()
    given = parser.parse_args(argv, defaults=False).as_dict()
    chosen = parser.parse_args(argv)
    try:
        settings = Comparison(**{name: chosen[name] for name in Comparison.__dataclass_fields__})
        settings.arms()
        task = make_task(settings.task, models=settings.models, cache=settings.cache)
        with_settings(with_settings(PPOConfig(), task.ppo), given.get("ppo", {}))
    except ValueError as error:
        parser.error(str(error))
    disable_progress_bar()  # of every model file that is read
    try:
        compare(settings, task, given.get("ppo", {}), Console())
    except (FileExistsError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
