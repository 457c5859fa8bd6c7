"""A comparison as a command: its flags, and the checks before anything heavy is imported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.base.command_line import CommandParser, command_line
from benchmarks.base.flag_errors import as_typed
from benchmarks.base.flags import flags_of
from benchmarks.runs.settings import ComparisonSettings
from rlhf_core.config import PPOConfig

SECTIONS = {
    "what is compared": ("task", "redistributors", "controls", "seeds", "seeds_of", "steps", "power", "until", "out"),
    "models and data": ("models", "cache", "policy", "data", "reward", "reward_label", "template", "reward_template"),
    "how it runs": ("eval_every", "eval_prompts", "save_every", "processes", "paper_curves", "overwrite"),
    "on a Ray cluster": ("executor", "ray_address", "gpus_per_run"),
}
ABOUT_PPO = "PPO settings are --ppo.NAME, on top of the task's own."


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A script with no settings of its own."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """A comparison as a command."""

    name: str
    """Module below ``benchmarks``."""
    summary: str
    """What ``--help`` begins with."""
    experiment: Callable[[], Any]
    """Imports the :class:`benchmarks.runs.experiment.Experiment`, which takes seconds: asked once settings are read."""
    options: type[Any] = NoOptions
    """Dataclass of the settings that only this script has."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What it changes in the defaults of ``ComparisonSettings``."""
    besides: Callable[[Mapping[str, Any]], str] = lambda _: ""
    """What else is wrong with settings that were refused, in lines, so that one call tells all; nothing for a command
    that answers at once."""

    def parser(self) -> CommandParser:
        """Flags of the comparison and of the script, and every PPO setting but the seed as --ppo.NAME."""
        summary = f"{self.summary} {ABOUT_PPO}"
        parser = command_line(ComparisonSettings, f"benchmarks.{self.name}", summary=summary, sections=SECTIONS)
        if fields(self.options):
            parser.add_class_arguments(self.options)
        parser.add_class_arguments(PPOConfig, "ppo", skip={"seed"}, instantiate=False)  # the task's settings come first
        parser.set_defaults({"out": f"runs/{self.name}", **self.defaults})
        return parser

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Command line; bad input ends the process with the reason."""
        parser = self.parser()
        ppo = parser.parse_args(argv, defaults=False).as_dict().get("ppo", {})
        try:
            chosen = parser.instantiate(parser.parse_args(argv))
            given = {f.name: chosen[f.name] for f in fields(ComparisonSettings)}
            options = self.options(**{f.name: chosen[f.name] for f in fields(self.options)})
            try:
                settings = ComparisonSettings(**given)
                settings.require_ppo(ppo)
            except ValueError as error:
                raise ValueError("\n".join(filter(None, (f"{error}", self.besides(given))))) from error
            experiment = self.experiment()
            from benchmarks.runs.worker_pool import RunFailed  # imported with the experiment already

            try:
                experiment.main(settings, ppo, options)
            except RunFailed as failed:
                parser.fail(failed)
        except (ValueError, OSError) as error:
            parser.refuse(error)


def as_typed_here(message: str) -> str:
    """The message of an engine that knows no command line, with the settings of a comparison as they are typed."""
    parser = Script(name="compare", summary="", experiment=lambda: None).parser()
    return as_typed(message, flags_of(parser))
