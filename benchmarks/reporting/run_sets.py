"""Runs on disk, finished or going on, sorted into arms, for a page on several of them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.base.run_folder import RECORD, read_record
from benchmarks.reporting.statistics import Array, Results
from rlhf_core.pages.run_record import SETTINGS, Figures, RunRecord, as_number, read_run

FINAL = "final"
"""Under which name a run's record holds the figures of its final policy."""
SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True, kw_only=True)
class RunSet:
    """Runs by arm, each arm's in the order of their seeds."""

    arms: Mapping[str, tuple[RunRecord, ...]]

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All of them."""
        return tuple(run for runs in self.arms.values() for run in runs)


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The folders of runs among ``folders`` and anywhere in them, each once.

    Raises:
        ValueError: there is none in one of them.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / SETTINGS).is_file() else sorted(path.parent for path in folder.rglob(SETTINGS))
        if not inside:
            raise ValueError(f"{folder} holds no run: no folder in it has the {SETTINGS} that fit writes")
        found |= {run.resolve(): run for run in inside}
    return list(found.values())


def sorted_into_arms(folders: Sequence[Path], order: Sequence[str] = ()) -> RunSet:
    """Read the runs. Those in folders ARM/seed-N are one arm; others are one where all their settings but the seed are
    the same. Arms stand in the given ``order``, further ones after it.

    Raises:
        ValueError: a folder that holds no run, or a damaged file; names it.
    """
    groups: dict[str, list[RunRecord]] = {}
    for folder in folders:
        run = read_run(folder)
        groups.setdefault(_group(run), []).append(run)
    names = _names([runs[0] for runs in groups.values()])
    arms = {name: tuple(sorted(runs, key=seed_of)) for name, runs in zip(names, groups.values(), strict=True)}
    first = [name for name in order if name in arms]
    return RunSet(arms={name: arms[name] for name in dict.fromkeys([*first, *arms])})


def seed_of(run: RunRecord) -> int:
    """The seed of a run's random streams."""
    return int(as_number(run.config.get("seed", 0)))


def results(found: RunSet, task: str, *, paired: bool = True) -> Results | None:
    """Curves over the seeds that every arm has, or where arms are not ``paired`` by design, over all that each has; cut
    to the steps that every run has reached. None if there are no such seeds or steps. Held-out figures are there where
    every run has finished."""
    shared = set.intersection(*({seed_of(run) for run in runs} for runs in found.arms.values()))
    chosen = {arm: [run for run in runs if not paired or seed_of(run) in shared] for arm, runs in found.arms.items()}
    seeds = {arm: tuple(map(seed_of, runs)) for arm, runs in chosen.items()}
    steps = min((len(run.metrics) for runs in chosen.values() for run in runs), default=0)
    if not steps or any(len(set(some)) < len(some) for some in seeds.values()):
        return None
    finals = {run.folder: _final(run) for runs in chosen.values() for run in runs}
    complete = all(finals.values())
    return Results(
        task=task,
        seeds=tuple(sorted(set().union(*seeds.values()))),
        own_seeds={} if paired else seeds,
        curves={
            arm: curves([run.metrics for run in runs], [finals[run.folder] for run in runs] if complete else [], steps)
            for arm, runs in chosen.items()
        },
    )


def curves(runs: Sequence[Figures], finals: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Array]:
    """Every figure of one arm's runs as (seed, step), up to so many steps, and the final figures as (seed, 1). What a
    step left undefined, or wrote as "nan", is NaN."""
    names = {name for run in runs for name, (rows, _) in run.columns.items() if rows[0] < steps}
    found = {name: np.array([run.values(name)[:steps] for run in runs]) for name in sorted(names)}
    for name in sorted({name for final in finals for name in final}):
        found[name] = np.array([[as_number(final.get(name))] for final in finals])
    return found


def _final(run: RunRecord) -> Mapping[str, Any]:
    """The figures of the final policy; empty if the run has not finished, or was not part of a comparison."""
    if not (run.folder / RECORD).is_file():
        return {}
    final = read_record(run.folder).get(FINAL)
    return final if isinstance(final, dict) else {}


def _group(run: RunRecord) -> str:
    """What runs of one arm have in common."""
    if SEED.fullmatch(run.folder.name):
        return str(run.folder.resolve().parent)
    same = {name: value for name, value in run.settings.items() if name not in ("models", "first_step", "trained")}
    return json.dumps({**same, "config": {**run.config, "seed": None}}, sort_keys=True)


def _names(firsts: Sequence[RunRecord]) -> list[str]:
    """Each arm's name: its folder's, with as many of the folders above as tell it from the others."""
    paths = [
        (run.folder.resolve().parent if SEED.fullmatch(run.folder.name) else run.folder.resolve()).parts
        for run in firsts
    ]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]
