"""Check what every registered method declares, and general claims about credit, by exact enumeration.

``python -m benchmarks.theory`` takes seconds, needs no model, and ends with status 1 if something declared, or
something claimed, does not hold. What is not declared is measured too.
"""

from dataclasses import dataclass, replace

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.base.out_folder import require_free
from benchmarks.base.settings_checks import require_at_least

NAME = "benchmarks.theory"
MOST = 4096
"""Responses of a world, at most."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Check what each method declares, on every response of small tabular worlds. Ends with status 1 if something does
    not hold."""

    methods: str | list[str] = "all"
    """Methods: all registered ones, or names, with settings as uniform(beta=0.8). Your own is package.module.Class."""
    worlds: int = 5
    """How many worlds. Each has its own policy, scores and attention."""
    words: int = 2
    """Tokens besides EOS."""
    longest: int = 5
    """Longest response in tokens. A world has about words**longest responses."""
    out: str = "runs/theory"
    """Folder for tables and figure."""
    overwrite: bool = False
    """Delete an earlier result in the out folder."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods must name at least one redistributor, or be all")
        require_at_least(self, worlds=1, words=2, longest=3)
        if self.words**self.longest > MOST:
            raise ValueError(f"words {self.words} and longest {self.longest} make more than {MOST} responses")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    settings = parse(Settings, NAME, argv)
    with refusals(NAME):
        require_free(settings)
        import torch
        from rich.console import Console

        from benchmarks.base.run_folder import measurement_folder
        from benchmarks.runs.arms import parse_arms
        from benchmarks.worlds.theory_report import Sizes, run
        from redistributors import REDISTRIBUTORS

        if settings.methods == "all":
            settings = replace(settings, methods=list(REDISTRIBUTORS))
        methods = {arm.label: arm.redistributor for arm in parse_arms(settings.methods)}
        out = measurement_folder(settings, NAME)
        torch.set_num_threads(1)
        sizes = Sizes(worlds=settings.worlds, words=settings.words, longest=settings.longest)
        with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
            holds = run(methods, sizes, out, Console())
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
