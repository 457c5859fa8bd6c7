"""An experiment: the panels that run, and the table and figures made from their curves."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.base.interruption import stoppable
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.base.resume_command import resume_command
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.ruined_runs import ruined_runs
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import (
    ComparisonResults,
    Panel,
    announced,
    left_out,
    plan,
    ppo_of,
    run_comparison,
    run_pilot,
)
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import Task, run_name
from benchmarks.runs.worker_pool import Interrupted, finished
from rlhf_core.pages.run_record import read_run

Write = Callable[[ComparisonResults, Any, Path, Console], None]


def published(
    figure: str, table: Callable[[ComparisonResults, Any], Table], draw: Callable[[ComparisonResults, Any], Figure]
) -> Write:
    """Writes table.md and .csv, and FIGURE.png and .pdf, from the results and the script's own settings."""

    def write(done: ComparisonResults, options: Any, out: Path, console: Console) -> None:
        publish(table(done, options), {figure: draw(done, options)}, out, console)

    return write


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What runs, and what is written from it."""

    write: Write
    """Makes data, tables and figures in the folder it is given, from the results and the script's own settings."""
    folder: str
    """Where below OUT it writes; a folder of its own, so that experiments may share runs."""
    panels: Callable[[ComparisonSettings, Any], Sequence[Panel]] = lambda _, __: (Panel(),)

    def run(
        self, settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], console: Console, options: Any = None
    ) -> ComparisonResults:
        """Run the comparison and write what the experiment makes of it; raises like :func:`run_comparison`."""
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        panels = self.panels(settings, options)
        runs = [run for panel in panels for run in plan(settings, task, panel, ppo_of(task, ppo))]
        for line in announced(settings, runs, left_out=left_out(settings, panels, ppo_of(task, ppo))):
            say(line)
        done = run_comparison(settings, task, ppo, panels, options, say=say)
        out = Path(settings.out, self.folder)
        out.mkdir(parents=True, exist_ok=True)
        self.write(done, options, out, console)
        if warning := ruined_runs({run_name(run): read_run(run.folder) for run in runs if finished(run)}):
            say(warning)
        return done

    def main(self, settings: ComparisonSettings, ppo: Mapping[str, Any], options: Any) -> None:
        """As a command: Ctrl-C ends the process with status 130 and the command to go on.

        Raises:
            ValueError, OSError: settings that cannot be, or a folder that may not be used.
            RunFailed: a run failed.
        """
        task = settings.make_task()
        for panel in self.panels(settings, options):
            plan(settings, task, panel, ppo_of(task, ppo))
        quiet_libraries()
        go_on = resume_command(overwrite=settings.overwrite)
        try:
            with stoppable(f"to go on: {go_on}"):
                if settings.power:
                    run_pilot(settings, task, ppo, self.panels(settings, options), options)
                else:
                    self.run(settings, task, ppo, Console(), options)
        except Interrupted as stopped:
            print(f"{stopped}:\n{go_on}", file=sys.stderr)
            raise SystemExit(130) from None
