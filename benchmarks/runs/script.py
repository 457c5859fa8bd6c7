"""A comparison as a command: its flags, what runs, and what is written from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.base.command_line import CommandParser, command_line
from benchmarks.base.quiet_libraries import quiet_libraries
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, ComparisonSettings, Panel, plan, ppo_of, run_comparison
from benchmarks.runs.single_run import Task
from benchmarks.runs.worker_pool import Interrupted
from rlhf_core.config import PPOConfig

SECTIONS = {
    "what is compared": ("task", "redistributors", "controls", "seeds", "steps", "out"),
    "models and data": ("models", "cache", "policy", "reward", "data", "template", "reward_template"),
    "how it runs": ("eval_every", "eval_prompts", "save_every", "processes", "overwrite"),
}
ABOUT_PPO = "PPO settings are --ppo.NAME, on top of the task's own."
Write = Callable[[ComparisonResults, Any, Path, Console], None]


def published(
    figure: str, table: Callable[[ComparisonResults, Any], Table], draw: Callable[[ComparisonResults, Any], Figure]
) -> Write:
    """Writes table.md and .csv, and FIGURE.png and .pdf, from the results and the script's own settings."""

    def write(done: ComparisonResults, options: Any, out: Path, console: Console) -> None:
        publish(table(done, options), {figure: draw(done, options)}, out, console)

    return write


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A script with no settings of its own."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """An experiment as a command: what runs, and what is written from it."""

    name: str
    """Module below ``benchmarks``."""
    summary: str
    """What ``--help`` begins with."""
    write: Write
    """Makes data, tables and figures in the folder it is given, from the results and the script's own settings."""
    panels: Callable[[ComparisonSettings, Any], Sequence[Panel]] = lambda _, __: (Panel(),)
    options: type[Any] = NoOptions
    """Dataclass of the settings that only this script has."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What it changes in the defaults of ``ComparisonSettings``."""
    folder: str | None = None
    """Where below OUT it writes; None is the script's name, so that scripts may share runs."""

    def parser(self) -> CommandParser:
        """Flags of the comparison and of the script, and every PPO setting but the seed as --ppo.NAME."""
        summary = f"{self.summary} {ABOUT_PPO}"
        parser = command_line(ComparisonSettings, f"benchmarks.{self.name}", summary=summary, sections=SECTIONS)
        if fields(self.options):
            parser.add_class_arguments(self.options)
        parser.add_class_arguments(PPOConfig, "ppo", skip={"seed"}, instantiate=False)  # the task's settings come first
        parser.set_defaults({"out": f"runs/{self.name}", **self.defaults})
        return parser

    def run(
        self, settings: ComparisonSettings, task: Task, ppo: Mapping[str, Any], console: Console, options: Any = None
    ) -> ComparisonResults:
        """Run the comparison and write what the script makes of it; raises as :func:`run_comparison`."""
        own = self.options() if options is None else options
        done = run_comparison(settings, task, ppo, self.panels(settings, own), own)
        out = Path(settings.out, self.name if self.folder is None else self.folder)
        out.mkdir(parents=True, exist_ok=True)
        self.write(done, own, out, console)
        return done

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Command line; bad input ends the process with the reason."""
        parser = self.parser()
        ppo = parser.parse_args(argv, defaults=False).as_dict().get("ppo", {})
        try:
            chosen = parser.instantiate(parser.parse_args(argv))
            settings = ComparisonSettings(**{f.name: chosen[f.name] for f in fields(ComparisonSettings)})
            own = self.options(**{f.name: chosen[f.name] for f in fields(self.options)})
            task = settings.make_task()
            for panel in self.panels(settings, own):
                plan(settings, task, panel, ppo_of(task, ppo))
            quiet_libraries()
            self.run(settings, task, ppo, Console(), own)
        except Interrupted as stopped:
            parser.exit(130, f"\n{stopped}\n")
        except (ValueError, OSError) as error:
            parser.refuse(error)
