"""The effect of each of the engine's speed-ups alone: ours and a named alternative, in turn, on one thread.

Sizes are GPT-2 124M's, with a micro-batch of 1,024 response tokens and responses of 64. ``--size small`` is for a first
try. The allocator's lever is a case of ``benchmarks.throughput`` (default-allocator): it belongs to a whole process.
"""

from dataclasses import dataclass
from typing import Literal

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.base.out_folder import require_free
from benchmarks.base.settings_checks import require_at_least

NAME = "benchmarks.levers"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time each of the engine's speed-ups against what it replaces, one at a time."""

    size: Literal["gpt2", "small"] = "gpt2"
    """Size of the model: GPT-2 124M, or a small one for a first try."""
    seconds: float = 60.0
    """CPU seconds to spend on each; at least 5 passes of each kind are made, at most 60."""
    out: str = "levers"
    """Folder for the table."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_at_least(self, seconds=0)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, NAME, argv)
    with refusals(NAME):
        require_free(settings)
        from rich.console import Console

        from benchmarks.base.run_folder import measurement_folder
        from benchmarks.cost.lever_timing import lever_table
        from benchmarks.reporting.publishing import publish

        out = measurement_folder(settings, NAME)
        with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
            publish(lever_table(settings.size, settings.seconds), {}, out, Console())


if __name__ == "__main__":
    main()
