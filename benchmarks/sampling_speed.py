"""How fast is sampling, against ``generate`` one prompt at a time and against ``generate`` on a left-padded batch?

All draw responses of the same ragged lengths from the same GPT-2 shaped model with random weights. The published loop
is one alternative: one prompt at a time, with every attention map kept. It runs on the installed transformers and, with
``--against trl-0.7.4``, in the published stack. The other is transformers at its best: all prompts at once under SDPA,
in a batch that goes on until the longest response ends. Before anything is timed, the alternatives on the installed
transformers draw with our uniform numbers and must come to our tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.base.out_folder import require_free
from benchmarks.base.settings_checks import require_at_least, require_known
from benchmarks.cost.engine_processes import PublishedStack

LENGTHS: Mapping[str, tuple[int, int]] = {"short": (8, 15), "long": (100, 200)}

NAME = "benchmarks.sampling_speed"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time our sampling against two ways to use transformers' generate, on the same model and the same work."""

    lengths: tuple[str, ...] = tuple(LENGTHS)
    """Response lengths: short (8 to 15 tokens), long (100 to 200)."""
    prompts: int = 16
    """Number of prompts, each of 2 to 8 tokens."""
    size: Literal["gpt2", "small"] = "gpt2"
    """Size of the model: GPT-2 124M, or a small one for a first try."""
    repeats: int = 5
    """Timed passes of each kind; 2 or more."""
    against: Literal["nothing", "trl-0.7.4"] = "nothing"
    """Also time the stack that the paper was published on; it needs an environment of its own."""
    published_python: str = ""
    """Python of the published stack's environment, DIR/bin/python; without it, the error says how to make one."""
    out: str = "sampling_speed"
    """Folder for the table."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_known(self, lengths=LENGTHS)
        require_at_least(self, prompts=1, repeats=2)
        self.stack()

    def stack(self) -> PublishedStack | None:
        """What else to compare with; raises ValueError where its interpreter is not there."""
        return None if self.against == "nothing" else PublishedStack(name=self.against, python=self.published_python)


SECTIONS = {"the published stack": ("against", "published_python")}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, NAME, argv, sections=SECTIONS)
    with refusals(NAME):
        require_free(settings)
        from rich.console import Console

        from benchmarks.base.run_folder import measurement_folder
        from benchmarks.cost.sampling_timing import sampling_table
        from benchmarks.reporting.publishing import publish

        out = measurement_folder(settings, NAME)
        with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
            table = sampling_table(
                {name: LENGTHS[name] for name in settings.lengths},
                size=settings.size,
                prompts=settings.prompts,
                repeats=settings.repeats,
                stack=settings.stack(),
            )
            publish(table, {}, out, Console())


if __name__ == "__main__":
    main()
