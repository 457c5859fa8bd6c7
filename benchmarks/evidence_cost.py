"""What does evidence cost? Compare a pass that PPO makes anyway, and a whole PPO step, with and without it.

A Llama-like model of about 10M parameters and 12 layers scores rows (abc, prefix-difference) or gives their
log-probabilities (abc-d, abc-d2). Then it takes PPO steps of one epoch: evidence is a larger share of those than of
steps with more epochs. Operations are counted, memory is the peak of live tensors, and time is CPU seconds of passes
taken in turn: plain, plain again, with evidence. The targets: at most 1 % more operations, 5 % more memory, and an
interval of the time ratio that reaches down to 1.03.
"""

from dataclasses import dataclass

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.base.out_folder import require_free
from benchmarks.base.settings_checks import require_at_least, require_known

METHODS = ("abc", "prefix-difference", "abc-d", "abc-d2")

NAME = "benchmarks.evidence_cost"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure what evidence for credit adds to a pass and to a PPO step: operations, memory and time."""

    tokens: tuple[int, ...] = (128, 512, 1024, 4096)
    """Tokens per row in passes, half of them response."""
    rows: tuple[int, ...] = (1, 2)
    """Rows per pass and per step."""
    redistributors: tuple[str, ...] = METHODS
    """Methods whose evidence is measured: abc, prefix-difference, abc-d, abc-d2."""
    step_tokens: tuple[int, ...] = (128, 512)
    """Tokens per row in PPO steps, half of them response; an empty list leaves the steps out."""
    layers: int = 12
    """Layers of the model."""
    seconds: float = 20.0
    """CPU seconds to spend on each line of the table; at least 5 passes of each kind are made, at most 60."""
    out: str = "evidence_cost"
    """Folder for the table."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_known(self, redistributors=METHODS)
        require_at_least(self, tokens=2, step_tokens=2, rows=1, layers=1, seconds=0)
        if not self.rows or not (*self.tokens, *self.step_tokens):
            raise ValueError("there is nothing to measure: give rows, and tokens or step_tokens")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, NAME, argv)
    with refusals(NAME):
        require_free(settings)
        from rich.console import Console

        from benchmarks.base.run_folder import measurement_folder
        from benchmarks.cost.evidence_timing import evidence_table
        from benchmarks.reporting.publishing import publish

        out = measurement_folder(settings, NAME)
        with stoppable(f"{out} is incomplete: pass --overwrite true to begin again"):
            table = evidence_table(
                settings.redistributors,
                rows=settings.rows,
                tokens=settings.tokens,
                step_tokens=settings.step_tokens,
                layers=settings.layers,
                seconds=settings.seconds,
            )
            publish(table, {}, out, Console())


if __name__ == "__main__":
    main()
