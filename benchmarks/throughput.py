"""How fast is a PPO step, phase by phase, against the machine's floor and against the published stack?

Each case is timed in processes of their own, one thread on a CPU (CPU seconds of the process), after a warm-up step:
ours twice and, with ``--against trl-0.7.4``, the published stack with its own optimizer and with fused Adam, one step
each in turn, ``--repeats`` times. Ratios are of neighbouring steps on the same prompts and response lengths.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from rich.console import Console
from tqdm import tqdm

from benchmarks.cli import measurement_folder, parse
from benchmarks.publishing import publish
from benchmarks.report import number
from benchmarks.tables import Table, Value
from benchmarks.throughput_case import PHASES, Case
from models.tiny import EOS_ID

CASES: Mapping[str, Case] = {
    "paper": Case(),
    "minibatch-16": Case(minibatch_size=16),
    "long": Case(lengths=(100, 200), minibatch_size=8),
    "lora": Case(minibatch_size=16, training="lora"),
    "bf16": Case(minibatch_size=16, dtype="bfloat16"),
    "default-allocator": Case(keep_freed_memory=False),
    "tiny": Case(layers=2, hidden=64, vocab=128, prompts=4, minibatch_size=4),
}
"""GPT-2 124M in the paper's setting, with larger minibatches, and with long responses; "tiny" is for a first try."""
SWEEP = Case(layers=4, hidden=256, vocab=8_192, minibatch_size=16, lengths=(32, 32))
WORKER = Path(__file__).parent / "published_stack" / "worker.py"
TOLERANCE = 1e-3
Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is timed."""

    cases: tuple[str, ...] = ("paper", "minibatch-16", "long")
    """Of paper, minibatch-16, long, lora, bf16, default-allocator, tiny."""
    repeats: int = 3
    """Timed steps of each engine."""
    against: Literal["nothing", "trl-0.7.4"] = "nothing"
    """The stack the paper was published on; installed by benchmarks/published_stack/install.sh."""
    published_python: str = ""
    """Interpreter of the published stack's environment (DIR/bin/python after ``install.sh DIR``)."""
    sweep: bool = False
    """Time ours over prompts a rollout and over response lengths instead, on a small model."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where ours runs."""
    out: str = "throughput"
    """Folder for the tables."""
    overwrite: bool = False
    """Delete an earlier measurement in ``out``."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.cases if name not in CASES]
        if unknown or not self.cases:
            raise ValueError(f"cases must be of {', '.join(CASES)}, got {self.cases}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be 1 or more, got {self.repeats}")
        if self.against != "nothing" and not Path(self.published_python).is_file():
            raise ValueError(
                f"--against {self.against} needs its own environment: run benchmarks/published_stack/install.sh DIR, "
                f"then give --published_python DIR/bin/python (got {self.published_python!r})"
            )
        if self.against != "nothing" and self.device != "cpu":
            raise ValueError("the published stack is timed on a CPU only: leave --device cpu")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Steps of one engine on one case, in the order they were taken."""

    engine: str
    case: Case
    steps: tuple[Mapping[str, Any], ...]

    def seconds(self, phase: str | None = None) -> list[float]:
        """CPU seconds of each step, or of a phase of it."""
        return [step["cpu_seconds"] if phase is None else step["phases"].get(phase, 0.0) for step in self.steps]


@contextmanager
def process(command: Sequence[str], case: Mapping[str, Any]) -> Iterator[Ask]:
    """A worker that builds ``case`` and answers lines of JSON; what it prints besides is shown only if it fails.

    Raises:
        RuntimeError: it ended instead of answering, with the last of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        worker = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        )
        requests, answers = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)

        def send(request: Mapping[str, Any]) -> None:
            requests.write(json.dumps(request) + "\n")
            requests.flush()

        def ask(**request: Any) -> dict[str, Any]:
            send(request)
            line = answers.readline()
            if not line:
                said.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {worker.wait()}:\n{said.read()[-2000:]}")
            found: dict[str, Any] = json.loads(line)
            return found

        try:
            send({"case": case})
            yield ask
        finally:
            worker.kill()
            worker.communicate()


def ours(case: Case) -> AbstractContextManager[Ask]:
    """Our engine on a case."""
    return process([sys.executable, "-m", "benchmarks.throughput_case"], dataclasses.asdict(case))


def published(case: Case, folders: Mapping[str, str], *, fused: bool, python: str) -> AbstractContextManager[Ask]:
    """The published stack on the same weights."""
    asked = {
        **folders,
        "rollout_batch_size": case.prompts,
        "minibatch_size": case.minibatch_size,
        "eos_id": EOS_ID,
        "fused": fused,
    }
    return process([python, str(WORKER)], asked)


def timed(name: str, settings: Settings, bar: "tqdm[Any]") -> tuple[list[Timing], dict[str, Any]]:
    """Steps of every engine on a case, taken in turn; and what one step of ours asks of the machine.

    Raises:
        RuntimeError: the engines did not do the same work.
    """
    case = replace(CASES[name], device=settings.device)
    with ExitStack() as stack:
        engine = stack.enter_context(ours(case))
        counted = engine(do="count")
        bar.update()
        others: dict[str, Ask] = {}
        if settings.against != "nothing":
            folders = engine(do="save", folder=stack.enter_context(tempfile.TemporaryDirectory()))
            for label, fused in ((f"{settings.against}", False), (f"{settings.against}, fused Adam", True)):
                others[label] = stack.enter_context(
                    published(case, folders, fused=fused, python=settings.published_python)
                )
            require_same_maths(engine, others)
        steps: dict[str, list[dict[str, Any]]] = {label: [] for label in ("ours", "ours again", *others)}
        # the others' first step makes their optimizer's states, as ours was counted
        for _ in range(settings.repeats + bool(others)):
            for label in ("ours", "ours again"):
                steps[label].append(engine(do="step"))
                bar.update()
            latest = steps["ours again"][-1]
            for label, other in others.items():
                steps[label].append(other(do="step", prompts=latest["prompts"], lengths=latest["lengths"]))
                require_same_work(latest, steps[label][-1], label)
                bar.update()
    warm = bool(others)
    return [Timing(engine=label, case=case, steps=tuple(taken[warm:])) for label, taken in steps.items()], counted


def require_same_maths(engine: Ask, others: Mapping[str, Ask]) -> None:
    """Log-probability and score of a fixed response must agree between the stacks."""
    fixed = {"do": "measure", "prompt": [5, 6, 7], "response": [8, 9, 10, 11]}
    mine = engine(**fixed)
    for label, other in others.items():
        theirs = other(**fixed)
        for what, value in mine.items():
            if abs(value - theirs[what]) > TOLERANCE:
                raise RuntimeError(
                    f"{what} of one response is {value} here and {theirs[what]} in {label}: not the same"
                )


def require_same_work(mine: Mapping[str, Any], theirs: Mapping[str, Any], label: str) -> None:
    """As many response tokens and as many optimizer steps."""
    for what in ("tokens", "optimizer_steps"):
        if mine[what] != theirs[what]:
            raise RuntimeError(f"{label} took {theirs[what]} {what} where ours took {mine[what]}: not the same work")


def spread(values: Sequence[float]) -> str:
    """min–median–max, three digits each."""
    return "–".join(number(float(f(values))) for f in (min, np.median, max))


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Of neighbouring steps."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def comparison(timings: Mapping[str, list[Timing]], counted: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for every case and engine: seconds, ratio to ours, peak memory, distance from the floor."""
    rows: list[tuple[Value, ...]] = []
    for name, engines in timings.items():
        reference = next(timing for timing in engines if timing.engine == "ours again")
        floor = sum(counted[name]["floor"].values())
        for timing in engines:
            last = timing.steps[-1]
            rows.append(
                (
                    name,
                    timing.engine,
                    spread(timing.seconds()),
                    spread(ratios(timing.seconds(), reference.seconds())),
                    float(np.median(timing.seconds())) / floor,
                    last["peak_bytes"] / 2**30,
                    last["tokens"] / float(np.median(timing.seconds())),
                )
            )
    columns = ("case", "engine", "CPU seconds a step", "ratio to ours", "x floor", "peak GiB", "tokens/s")
    notes = [f"{name}: {engines[0].case.words}." for name, engines in timings.items()]
    notes.append("min–median–max over steps; ratios pair neighbouring steps; the row 'ours' is the A/A ratio.")
    rates = next(iter(counted.values()))["rates"]
    notes.append(f"Floor at {rates['flops'] / 1e9:.0f} GFLOP/s and {rates['bytes'] / 1e9:.1f} GB/s, measured.")
    return Table(title="a PPO step", columns=columns, rows=tuple(rows), notes=tuple(notes))


def phases(timings: Mapping[str, list[Timing]], counted: Mapping[str, Mapping[str, Any]]) -> Table:
    """Ours by phase: seconds, tokens a second, share of the floor."""
    rows: list[tuple[Value, ...]] = []
    for name, engines in timings.items():
        timing = next(timing for timing in engines if timing.engine == "ours again")
        tokens = float(np.median([step["tokens"] for step in timing.steps]))
        for phase in PHASES:
            seconds, least = float(np.median(timing.seconds(phase))), counted[name]["floor"][phase]
            rows.append(
                (name, phase, seconds, tokens / seconds if seconds else None, least, seconds / least if least else None)
            )
    columns = ("case", "phase", "seconds", "response tokens/s", "floor, seconds", "x floor")
    return Table(title="phases", columns=columns, rows=tuple(rows))


def sweep(settings: Settings, bar: "tqdm[Any]") -> Table:
    """Cost of a response token by prompts a rollout and by response length; last column against the first row."""
    rows: list[tuple[Value, ...]] = []
    for what, cases in (
        ("prompts", [replace(SWEEP, prompts=n) for n in (16, 32, 64, 128, 256)]),
        ("response tokens", [replace(SWEEP, lengths=(n, n)) for n in (32, 64, 128, 256, 512, 1024)]),
    ):
        first: float | None = None
        first_flops: float | None = None
        for case in cases:
            with ours(replace(case, device=settings.device)) as engine:
                counted = engine(do="count")
                steps = [engine(do="step") for _ in range(settings.repeats)]
            bar.update()
            cost = float(np.median([step["cpu_seconds"] / step["tokens"] for step in steps]))
            flops = counted["flops"] / counted["tokens"]
            first, first_flops = first or cost, first_flops or flops
            value = case.prompts if what == "prompts" else case.lengths[0]
            rows.append((what, value, 1e3 * cost, cost / first, flops / first_flops))
    columns = ("swept", "value", "ms a response token", "x first", "FLOPs x first")
    return Table(title="growth of cost", columns=columns, rows=tuple(rows))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, "benchmarks.throughput", argv)
    out = measurement_folder(settings, "benchmarks.throughput")
    console = Console()
    if settings.sweep:
        with tqdm(total=11, desc="sweep", unit="case", dynamic_ncols=True) as bar:
            table = sweep(settings, bar)
        publish(table, {}, out, console, name="sweep")
        return
    rounds = settings.repeats + (settings.against != "nothing")
    total = len(settings.cases) * (1 + rounds * (4 if settings.against != "nothing" else 2))
    with tqdm(total=total, desc="steps", unit="step", dynamic_ncols=True) as bar:
        found = {name: timed(name, settings, bar) for name in settings.cases}
    timings, counted = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
    publish(comparison(timings, counted), {}, out, console)
    publish(phases(timings, counted), {}, out, console, name="phases")


if __name__ == "__main__":
    main()
