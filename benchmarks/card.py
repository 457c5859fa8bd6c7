"""Measure a card in ten minutes: every kind of step, sampling, and memory beside its prediction, in one JSON file.

Each case takes PPO steps with random weights in a process of its own, so that one which runs out of memory does not end
the others. The file, card.json in the out folder, names hardware, versions, command and commit, and gives seconds by
phase, sampled tokens per second, rounding and peaks of memory for each case, or why there are none. What no longer fits
into the time is left out, and the file says so.
"""

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.interruption import stoppable
from benchmarks.base.out_folder import require_free
from benchmarks.base.settings_checks import require_at_least, require_known
from benchmarks.cost.cases import CASES, ON_A_CARD
from benchmarks.cost.engine_processes import VARIANTS, PublishedStack, require_device

NAME = "benchmarks.card"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure what a card does with PPO steps of several kinds, within a given time, and write one JSON file."""

    cases: tuple[str, ...] = ON_A_CARD
    """What the steps work on, in this order; benchmarks/cost/cases.py in the repository lists all."""
    minutes: float = 10.0
    """Time for all cases together; a case that does not end within it is left out."""
    repeats: int = 3
    """Timed steps per case, after one that is not."""
    published_python: str = ""
    """Python of the published stack's environment, DIR/bin/python; without it, that stack is not measured."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where to measure; cpu is for trying the command out."""
    out: str = "card"
    """Folder for card.json."""
    overwrite: bool = False
    """Delete an earlier measurement in the out folder."""

    def __post_init__(self) -> None:
        require_known(self, cases=CASES)
        require_at_least(self, repeats=1, minutes=0)
        self.stack()

    def stack(self) -> PublishedStack | None:
        """What else to measure; raises ValueError where its interpreter is not there."""
        if not self.published_python:
            return None
        return PublishedStack(name="trl-0.7.4", python=self.published_python, variants=tuple(VARIANTS))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, NAME, argv)
    with refusals(NAME):
        require_free(settings)
        require_device(settings.device)
        from benchmarks.base.run_folder import measurement_folder
        from benchmarks.cost.card_measurement import FILE, Budget, measure, summary

        out = measurement_folder(settings, NAME)
        cases = {name: replace(CASES[name], device=settings.device) for name in settings.cases}
        with stoppable(f"{out / FILE} holds the cases that had ended"):
            found = measure(cases, settings.repeats, Budget(settings.minutes), settings.stack(), out)
        print(f"{summary(found)}\n{out / FILE}")


if __name__ == "__main__":
    main()
