"""Everything that is to be known of a card, case after case within a time budget: the work of ``benchmarks.card``.

Each case runs in a process of its own, so that one which runs out of memory does not end the others. What was measured
is written after every case, so that nothing is lost when the command is ended.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from benchmarks.base.environment import environment
from benchmarks.base.json_files import jsonable, write_json
from benchmarks.base.run_folder import command_words
from benchmarks.cost.cases import Case
from benchmarks.cost.engine_processes import PublishedStack, ours, published

BESIDE = 'python -m pytest -m "gpu and not slow" tests'
"""What else to run on a card: the tests that need one."""
FILE = "card.json"
Found = dict[str, Any]


class Budget:
    """Seconds that are left of ``minutes``, by ``clock``."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + 60 * minutes
        self.longest = 0.0

    def left(self) -> float:
        """Seconds; 0 once the time is up."""
        return max(0.0, self._end - self._clock())

    @contextmanager
    def spent(self, found: Found) -> Iterator[None]:
        """Note under "wall_seconds" how long what is inside took."""
        before = self.left()
        try:
            yield
        finally:
            found["wall_seconds"] = before - self.left()
            self.longest = max(self.longest, found["wall_seconds"])


def measure(cases: Mapping[str, Case], repeats: int, budget: Budget, stack: PublishedStack | None, out: Path) -> Found:
    """Measure ``repeats`` steps of every case, then the published ``stack`` on the first case that it can take; write
    all of it to ``out``/card.json, and return it. A case that failed, or was skipped for lack of time, says so under
    "failed" or "skipped"."""
    found: Found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_words(),
        "environment": dict(environment()),
        "run beside it": BESIDE,
        "cases": {},
    }
    work: dict[str, tuple[Case, Callable[[float], Found]]] = {
        name: (case, _steps_of(case, repeats)) for name, case in cases.items()
    }
    if stack is not None:
        plain = [case for case in cases.values() if (case.dtype, case.training) == ("float32", "full")]
        for case, variant in product(plain[:1], stack.variants):
            work[f"{stack.name}, {variant}"] = (case, _published_steps(stack, variant, case, repeats))
    for name, (case, run) in tqdm(work.items(), desc="cases", unit="case", dynamic_ncols=True, disable=None):
        found["cases"][name] = {"settings": jsonable(case), **_within(budget, case, run)}
        write_json(out / FILE, found)
    return found


def _within(budget: Budget, case: Case, run: Callable[[float], Found]) -> Found:
    """What ``run`` found, with its seconds; or why there is nothing."""
    if case.four_bit != "none" and find_spec("bitsandbytes") is None:
        return {"skipped": "bitsandbytes, which 4-bit weights need, is not installed"}
    seconds = budget.left()
    if seconds <= budget.longest:  # the list goes from small cases to large ones
        return {"skipped": f"{seconds:.0f} s were left, and the longest case so far took {budget.longest:.0f} s"}
    found: Found = {}
    with budget.spent(found):
        try:
            found |= run(seconds)
        except RuntimeError as error:  # a worker that ended; it says why
            found["failed" if budget.left() else "skipped"] = str(error) if budget.left() else "the time was up"
    return found


def _steps_of(case: Case, repeats: int) -> Callable[[float], Found]:
    """Steps of our engine, after one that makes the optimizer's states; noise, and memory beside its prediction."""

    def run(seconds: float) -> Found:
        with ours(case, seconds) as engine:
            noise, first = engine(do="noise"), engine(do="step")
            steps = [engine(do="step") for _ in range(repeats)]
            memory = {"predicted_bytes": engine(do="predicted"), "measured_bytes": most(steps)}
        return {
            "noise": noise,
            "first_step_seconds": first["cpu_seconds"],
            "steps": [figures(step) for step in steps],
            "memory": memory,
        }

    return run


def _published_steps(stack: PublishedStack, variant: str, case: Case, repeats: int) -> Callable[[float], Found]:
    """Steps of the published stack, on the prompts and lengths of a step of ours."""

    def run(seconds: float) -> Found:
        end = time.monotonic() + seconds
        with tempfile.TemporaryDirectory() as folder:
            with ours(case, seconds) as engine:
                models, step = engine(do="save", folder=folder), engine(do="step")
            with published(stack, variant, case, models, max(0.0, end - time.monotonic())) as other:
                same = {"prompts": step["prompts"], "lengths": step["lengths"]}
                steps = [other(do="step", **same) for _ in range(repeats + 1)]
        return {"first_step_seconds": steps[0]["cpu_seconds"], "steps": steps[1:]}

    return run


def figures(step: Mapping[str, Any]) -> Found:
    """A step's seconds, as a whole and by phase, its work and its speed."""
    tokens, phases = step["tokens"], step["phases"]
    return {
        "seconds": step["cpu_seconds"],
        "phases": phases,
        "tokens": tokens,
        "tokens_per_second": tokens / step["cpu_seconds"],
        "sampled_tokens_per_second": tokens / phases["generate"],
        "optimizer_steps": step["optimizer_steps"],
        "peak_bytes": step["peak_bytes"],
    }


def most(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The peak of each phase over all steps; empty on a CPU, which does not count by phase."""
    return {phase: max(step["peaks"][phase] for step in steps) for phase in steps[0]["peaks"]}


def summary(found: Found) -> str:
    """A line per case: its median step, or why there is none."""
    return "\n".join(f"{name}: {_line(case)}" for name, case in found["cases"].items())


def _line(case: Found) -> str:
    missing = next((f"{why}: {case[why]}" for why in ("skipped", "failed") if why in case), None)
    if missing is not None:
        return missing.splitlines()[0]
    taken = [step.get("seconds", step.get("cpu_seconds")) for step in case["steps"]]
    return f"{median(taken):.2f} s per step"
