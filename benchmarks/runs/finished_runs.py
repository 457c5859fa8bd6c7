"""Finished runs: when they finished, and their curves."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.base.run_folder import RECORD, read_record
from benchmarks.reporting.run_sets import FINAL, curves
from benchmarks.reporting.statistics import Array, Results
from benchmarks.runs.single_run import Run
from rlhf_core.files.plain_files import read_object
from rlhf_core.names import counted
from rlhf_core.pages.run_record import METRICS, REPORT, Figures, read_figures


def ended_on(runs: Sequence[Run]) -> str:
    """When the last of some finished runs ended, as " on 2026-11-30 01:40 UTC"; empty where no run noted it."""
    reports = [run.folder / REPORT for run in runs if (run.folder / REPORT).is_file()]
    written = max((str(read_object(path).get("written", "")) for path in reports), default="")
    return f" on {written}" if written else ""


def load_results(task: str, runs: Sequence[Run]) -> Results:
    """The curves of finished runs. A figure that a step left undefined, or wrote as "nan", is NaN. Arms are paired
    where all have the same seeds.

    Raises:
        ValueError: runs of one arm have different numbers of steps.
    """
    folders: dict[str, list[tuple[Path, int]]] = {}
    for run in runs:
        folders.setdefault(run.arm.label, []).append((run.folder, run.steps))
    seeds = tuple(dict.fromkeys(run.config.seed for run in runs))
    by_arm = {arm: tuple(run.config.seed for run in runs if run.arm.label == arm) for arm in folders}
    own = by_arm if len(set(by_arm.values())) > 1 else {}
    return Results(task=task, seeds=seeds, own_seeds=own, curves={arm: _curves(some) for arm, some in folders.items()})


def finished_curves(task: str, runs: Path, *, paired: bool) -> Results:
    """What stands in a folder of runs, ARM/seed-N, in the order the arms were finished: seeds that all arms have, or
    where arms are not ``paired`` by design, all that each has.

    Raises:
        ValueError: no run has finished there, or no seed was finished by every arm.
    """
    records = sorted(runs.glob(f"*/seed-*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    arms = list(dict.fromkeys(path.parent.parent.name for path in records))
    seeds = {arm: {_seed(path) for path in records if path.parent.parent.name == arm} for arm in arms}
    shared = set.intersection(*seeds.values()) if seeds else set()
    if paired or not seeds:
        seeds = dict.fromkeys(arms, shared)
    if not any(seeds.values()):
        raise ValueError(f"{runs} holds no seed that every arm has finished (arms: {', '.join(arms) or 'none'})")

    def with_steps(folder: Path) -> tuple[Path, int]:
        return folder, int(read_record(folder, "settings")["settings"]["steps"])

    ordered = {arm: tuple(sorted(some)) for arm, some in seeds.items()}
    return Results(
        task=task,
        seeds=tuple(sorted(set().union(*seeds.values()))),
        own_seeds={} if paired else ordered,
        curves={arm: _curves([with_steps(runs / arm / f"seed-{n}") for n in some]) for arm, some in ordered.items()},
    )


def _seed(record: Path) -> int:
    """The seed of the run that a record is of."""
    return int(record.parent.name.removeprefix("seed-"))


def _curves(runs: Sequence[tuple[Path, int]]) -> dict[str, Array]:
    """Every metric of one arm's runs (folder, steps) as (seed, step), and the final figures as (seed, 1)."""
    figures = [_figures(folder, steps) for folder, steps in runs]
    return curves(figures, [read_record(folder, FINAL)[FINAL] for folder, _ in runs], runs[0][1])


def _figures(folder: Path, steps: int) -> Figures:
    """A run's figures; raises ValueError where the file is not what a finished run leaves behind."""
    path = folder / METRICS
    found = read_figures(path)
    if len(found) != steps:
        raise ValueError(
            f"{path} has {counted(len(found), 'step')}, not the {steps} of a finished run; delete {folder}"
        )
    return found
