"""How fast is a PPO step, phase by phase, against the machine's floor and against the published stack?

Each engine runs in a process of its own. On a CPU it has one thread, and seconds are CPU seconds of the process. It is
timed after a warm-up step: our engine beside itself and, with ``--against trl-0.7.4``, the published stack as it was
run, with fused Adam, with our allocator setting too, and with its own batched ``generate`` as well. Each of its steps
is taken beside one of ours, on the same prompts and response lengths.
"""

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.base.out_folder import require_free
from benchmarks.base.settings_checks import require_at_least, require_known
from benchmarks.cost.cases import CASES
from benchmarks.cost.engine_processes import VARIANTS, PublishedStack, require_device

NAME = "benchmarks.throughput"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time PPO steps phase by phase, against the least this machine could take and against the published stack."""

    cases: tuple[str, ...] = ("paper", "minibatch-16", "long")
    """What the steps work on: paper, minibatch-16, long, long-small-passes, autocast, lora, bf16, four-bit,
    four-bit-copy (sampled through bfloat16), tf32 (on a card), default-allocator or tiny (for a first try)."""
    repeats: int = 3
    """Timed steps per engine and case."""
    against: Literal["nothing", "trl-0.7.4"] = "nothing"
    """Also time the stack that the paper was published on; it needs an environment of its own."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Ways to run the published stack: as it was run, and with what any user could have given it."""
    published_python: str = ""
    """Python of the published stack's environment, DIR/bin/python; without it, the error says how to make one."""
    sweep: bool = False
    """Instead of cases, time our engine on a small model over prompts per rollout and over response lengths."""
    noise: bool = False
    """Instead of timing the cases, show what rounding does to log-probabilities in each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the engines."""
    out: str = "throughput"
    """Folder for the tables."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_known(self, cases=CASES, variants=VARIANTS)
        require_at_least(self, repeats=1)
        if self.device == "cpu" and any(CASES[name].tf32 for name in self.cases):
            raise ValueError("case 'tf32' changes nothing on a CPU, which multiplies in float32: give --device cuda")
        if self.noise and (self.sweep or self.against != "nothing"):
            raise ValueError("--noise true times nothing: leave out --sweep and --against")
        if self.stack() is None:
            return
        for name in self.cases:
            if (CASES[name].precision, CASES[name].training) != ("float32", "full"):
                raise ValueError(f"the published stack is timed in float32 and full fine-tuning only, not on {name!r}")
        if self.sweep:
            raise ValueError("--sweep true times ours alone: leave out --against")

    def stack(self) -> PublishedStack | None:
        """What to compare with; raises ValueError where its interpreter is not there."""
        if self.against == "nothing":
            return None
        return PublishedStack(name=self.against, python=self.published_python, variants=self.variants)


SECTIONS = {"the published stack": ("against", "published_python", "variants")}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, NAME, argv, sections=SECTIONS)
    with refusals(NAME):
        require_free(settings)
        require_device(settings.device)
        from rich.console import Console

        from benchmarks.base.run_folder import measurement_folder
        from benchmarks.cost.step_timing import case_tables, noise_tables, sweep_tables
        from benchmarks.reporting.publishing import publish

        cases = {name: replace(CASES[name], device=settings.device) for name in settings.cases}
        out = measurement_folder(settings, NAME)
        with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
            if settings.sweep:
                tables = sweep_tables(settings.repeats, settings.device)
            elif settings.noise:
                tables = noise_tables(cases)
            else:
                tables = case_tables(cases, settings.repeats, settings.stack())
            console = Console()
            for name, table in tables.items():
                publish(table, {}, out, console, name=name)


if __name__ == "__main__":
    main()
