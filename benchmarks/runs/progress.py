"""Show the progress of runs in other processes, from the metrics they write: one line that updates in a terminal, or a
new line now and then in a log."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len, set_cell_size

from benchmarks.runs.single_run import Run, run_name
from rlhf_core.names import counted

LOOK_SECONDS = 2.0
"""Between two looks at the metrics."""
LOG_SECONDS = 60.0
"""Between two lines in a log."""
MINUTE, HOUR = 60, 3600


@dataclass
class Tail:
    """The metrics of one run, of which only what is new is read."""

    run: Run
    steps: int = 0
    """Steps taken so far."""
    newest: Mapping[str, Any] = field(default_factory=dict)
    """The last step's metrics."""
    offset: int = 0

    def advance(self) -> bool:
        """Read the steps that were added; whether there were any. A file that was cut, as a run that goes on from a
        checkpoint does, is read again."""
        path = self.run.folder / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size < self.offset:
            self.offset = self.steps = 0
        if size == self.offset:
            return False
        with path.open("rb") as lines:
            lines.seek(max(0, self.offset - 1))
            if self.offset and lines.read(1) != b"\n":  # cut, and grown beyond where it ended, between two looks
                self.offset = lines.seek(0)
            whole, end, _ = lines.read().rpartition(b"\n")
        self.offset += len(whole) + len(end)
        added = whole.split(b"\n") if end else []
        if added:
            self.newest = json.loads(added[-1])
            self.steps = self.newest["step"]  # not the number of lines: some may have come a second time
        return bool(added)

    def __str__(self) -> str:
        """Such as "abc, seed 1, step 12 of 60: score 1.23, KL 4.56"."""
        known = [f"{title} {float(self.newest[name]):z.3g}" for name, title in SHOWN.items() if name in self.newest]
        run = self.run
        place = f"{run_name(run)}, step {self.steps} of {run.steps}"
        return ": ".join(filter(None, [place, ", ".join(known)]))


SHOWN = {"score": "score", "kl": "KL"}


@dataclass
class Progress:
    """Report the progress of runs. ``before`` is the number of steps that were done when they began, ``total`` all."""

    tails: Sequence[Tail]
    total: int
    before: int
    stream: Any = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.began = self.said = self.clock()
        self.moved = False
        self.done = self.first = self.before + sum(tail.steps for tail in self.tails)

    def look(self) -> None:
        """Read what is new, and say it: at each step in a terminal, every ``LOG_SECONDS`` in a log."""
        moved = [tail for tail in self.tails if tail.advance()]
        self.done = self.before + sum(tail.steps for tail in self.tails)
        if not moved:
            return
        if not self.moved:  # until now models were loaded, which says nothing of the steps
            self.moved, self.began, self.first = True, self.clock(), self.done
        if self.stream.isatty():
            self._in_place(f"{self._counted()} | {moved[-1]}")
        elif self.clock() - self.said >= LOG_SECONDS:
            self.say(f"{self._counted()}; {'; '.join(map(str, moved))}")

    def finished(self, run: Run) -> None:
        """Report that a run has finished, with its last step."""
        tail = next(tail for tail in self.tails if tail.run is run)
        tail.advance()
        self.done = self.before + sum(tail.steps for tail in self.tails)
        self.say(f"finished {tail} ({self._counted()})")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.said = self.clock()
        if self.stream.isatty():
            self._in_place("")
        print(text, file=self.stream, flush=True)

    def _in_place(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        fitted = text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
        print(f"\r\x1b[K{fitted}", end="", file=self.stream, flush=True)

    def _counted(self) -> str:
        left = ""
        if self.first < self.done < self.total:
            seconds = (self.clock() - self.began) * (self.total - self.done) / (self.done - self.first)
            left = f", {duration(seconds)} left"
        return f"{self.done} of {counted(self.total, 'step')}{left}"


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / MINUTE)
    return f"{minutes} min" if seconds < 2 * HOUR else f"{minutes // 60} h {minutes % 60} min"
