"""How fast is a PPO step, phase by phase, against the machine's floor and against the published stack?

Each engine runs in a process of its own, on a CPU with one thread (seconds are CPU seconds of the process), and is
timed after a warm-up step: ours beside itself and, with ``--against trl-0.7.4``, the published stack as it was run,
with fused Adam, and with our allocator setting too, each step beside one of ours on the same prompts and lengths.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from rich.console import Console
from tqdm import tqdm

from benchmarks.base.cli import measurement_folder, parse
from benchmarks.cost.throughput_case import PHASES, Case
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value, number
from models.tiny import EOS_ID
from models.weights.source import DTYPES
from rlhf_core.checks import log_ratio_bounds

CASES: Mapping[str, Case] = {
    "paper": Case(),
    "minibatch-16": Case(minibatch_size=16),
    "long": Case(lengths=(100, 200), minibatch_size=8),
    "long-small-passes": Case(lengths=(100, 200), minibatch_size=8, micro_batch_tokens=384),
    "lora": Case(minibatch_size=16, training="lora"),
    "bf16": Case(minibatch_size=16, dtype="bfloat16", training="lora"),
    "four-bit": Case(minibatch_size=16, dtype="bfloat16", training="lora", four_bit="both"),
    "default-allocator": Case(keep_freed_memory=False),
    "tiny": Case(layers=2, hidden=64, vocab=128, prompts=4, minibatch_size=4),
}
"""GPT-2 124M in the paper's setting, with larger minibatches, with long responses, and with those in less memory;
"tiny" is for a first try."""
SWEEP = Case(layers=4, hidden=256, vocab=8_192, minibatch_size=16, lengths=(32, 32))
WORKER = Path(__file__).parent / "published_stack" / "worker.py"
INSTALL = WORKER.with_name("install.sh")
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "as run": {"fused": False, "keep_freed_memory": False},
    "fused Adam": {"fused": True, "keep_freed_memory": False},
    "fused Adam, keeps freed memory": {"fused": True, "keep_freed_memory": True},
}
FIXED = {"do": "measure", "prompt": [5, 6, 7], "response": [8, 9, 10, 11]}
TOLERANCE = 1e-3
Ask = Callable[..., dict[str, Any]]


def require_published_python(against: str, python: str) -> None:
    """Raises ValueError, with the way out, where a stack is asked for that has no interpreter."""
    if against != "nothing" and not Path(python).is_file():
        raise ValueError(
            f"--against {against} needs its own environment: run {INSTALL} DIR, "
            f"then give --published_python DIR/bin/python (got {python!r})"
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is timed."""

    cases: tuple[str, ...] = ("paper", "minibatch-16", "long")
    """Of paper, minibatch-16, long, long-small-passes, lora, bf16, four-bit, default-allocator, tiny."""
    repeats: int = 3
    """Timed steps of each engine."""
    against: Literal["nothing", "trl-0.7.4"] = "nothing"
    """The stack the paper was published on; in an environment of its own."""
    variants: tuple[str, ...] = ("as run", "fused Adam", "fused Adam, keeps freed memory")
    """Of the published stack: as it was run, and with what any user could have given it."""
    published_python: str = ""
    """Interpreter of the published stack's environment (DIR/bin/python; left out, the error says how to make one)."""
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
        strange = [name for name in self.variants if name not in VARIANTS]
        if strange or not self.variants:
            raise ValueError(f"variants must be of {'; '.join(VARIANTS)}, got {self.variants}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be 1 or more, got {self.repeats}")
        require_published_python(self.against, self.published_python)
        if self.against != "nothing" and self.device != "cpu":
            raise ValueError("the published stack is timed on a CPU only: leave --device cpu")
        for name in self.cases:
            if self.against != "nothing" and (CASES[name].dtype, CASES[name].training) != ("float32", "full"):
                raise ValueError(f"the published stack is timed in float32 and full fine-tuning only, not on {name!r}")
        if self.sweep and self.against != "nothing":
            raise ValueError("--sweep true times ours alone: leave out --against")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Steps of one engine on one case in the order they were taken, and the step of ours taken beside each."""

    engine: str
    case: Case
    steps: tuple[Mapping[str, Any], ...]
    beside: tuple[Mapping[str, Any], ...]

    def seconds(self) -> list[float]:
        """CPU seconds of each step."""
        return [step["cpu_seconds"] for step in self.steps]

    def ratios(self) -> list[float]:
        """To the step of ours beside each."""
        return [step["cpu_seconds"] / ours["cpu_seconds"] for step, ours in zip(self.steps, self.beside, strict=True)]

    def median(self, value: Callable[[Mapping[str, Any]], float]) -> float:
        """Of a figure of each step."""
        return float(np.median([value(step) for step in self.steps]))


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
        pending: list[Mapping[str, Any]] = [{"case": case}]

        def ask(**request: Any) -> dict[str, Any]:
            line = ""
            with suppress(BrokenPipeError):  # it has ended, as the empty line says
                requests.write("".join(json.dumps(one) + "\n" for one in (*pending, request)))
                requests.flush()
                pending.clear()
                line = answers.readline()
            if not line:
                said.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {worker.wait()}:\n{said.read()[-2000:]}")
            found: dict[str, Any] = json.loads(line)
            return found

        try:
            yield ask
        finally:
            worker.kill()
            with suppress(BrokenPipeError):  # of what was not read
                requests.close()
            answers.close()
            worker.wait()


def ours(case: Case) -> AbstractContextManager[Ask]:
    """Our engine on a case."""
    return process([sys.executable, "-m", "benchmarks.cost.throughput_case"], dataclasses.asdict(case))


def published(
    case: Case, folders: Mapping[str, str], variant: Mapping[str, bool], *, python: str
) -> AbstractContextManager[Ask]:
    """The published stack on the same weights."""
    sizes = {"rollout_batch_size": case.prompts, "minibatch_size": case.minibatch_size, "eos_id": EOS_ID}
    return process([python, str(WORKER)], {**folders, **sizes, **variant})


def timed(name: str, settings: Settings, bar: "tqdm[Any]") -> tuple[list[Timing], dict[str, Any]]:
    """Steps of every engine on a case, each beside one of ours; and what one step of ours asks of the machine, counted
    in a process of its own, as counting takes memory. One other engine exists at a time, so that memory is never short.

    Raises:
        RuntimeError: the engines did not do the same work.
    """
    case = replace(CASES[name], device=settings.device)
    with ours(case) as engine:
        found_noise = engine(do="noise")
        counted = engine(do="count") | {"noise": found_noise}
        bar.update()
    with ours(case) as engine, tempfile.TemporaryDirectory() as folder:

        def step() -> dict[str, Any]:
            bar.update()
            return engine(do="step")

        step()  # makes the optimizer's states
        pairs = [(step(), step()) for _ in range(settings.repeats)]
        found = [timing("ours", case, pairs)]
        if settings.against != "nothing":
            folders = engine(do="save", folder=folder)
            before = engine(**FIXED)
            for variant in settings.variants:
                label = f"{settings.against}, {variant}"
                with published(case, folders, VARIANTS[variant], python=settings.published_python) as other:
                    require_same_maths(before, other(**FIXED), label)
                    beside(step, other, label, bar)  # makes the optimizer's states
                    found.append(
                        timing(label, case, [beside(step, other, label, bar) for _ in range(settings.repeats)])
                    )
    return found, counted


def timing(engine: str, case: Case, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Timing:
    """Of pairs (step, ours beside it)."""
    return Timing(engine=engine, case=case, steps=tuple(a for a, _ in pairs), beside=tuple(b for _, b in pairs))


def beside(
    step: Callable[[], dict[str, Any]], other: Ask, label: str, bar: "tqdm[Any]"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step of the other engine on what ours has just worked on, and ours."""
    mine = step()
    theirs = other(do="step", prompts=mine["prompts"], lengths=mine["lengths"])
    bar.update()
    require_same_work(mine, theirs, label)
    return theirs, mine


def require_same_maths(mine: Mapping[str, float], theirs: Mapping[str, float], label: str) -> None:
    """Log-probability and score of a fixed response must agree between the stacks."""
    for what, value in mine.items():
        if abs(value - theirs[what]) > TOLERANCE:
            raise RuntimeError(f"{what} of one response is {value} here and {theirs[what]} in {label}: not the same")


def require_same_work(mine: Mapping[str, Any], theirs: Mapping[str, Any], label: str) -> None:
    """As many response tokens and as many optimizer steps."""
    for what in ("tokens", "optimizer_steps"):
        if mine[what] != theirs[what]:
            raise RuntimeError(f"{label} took {theirs[what]} {what} where ours took {mine[what]}: not the same work")


def spread(values: Sequence[float]) -> str:
    """min–median–max, three digits each."""
    return "–".join(number(float(f(values))) for f in (min, np.median, max))


def over_floor(timing: Timing, counted: Mapping[str, Any], phase: str | None = None) -> float | None:
    """Median of seconds over the least the machine could take, that of the counted step scaled by response tokens;
    None for a phase that needs no arithmetic to speak of."""
    least = sum(counted["floor"].values()) if phase is None else counted["floor"][phase]
    if not least:
        return None

    def ratio(step: Mapping[str, Any]) -> float:
        seconds: float = step["cpu_seconds"] if phase is None else step["phases"][phase]
        return seconds / (least * step["tokens"] / counted["tokens"])

    return timing.median(ratio)


def comparison(timings: Mapping[str, list[Timing]], counted: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for every case and engine: seconds, ratio to ours, distance from the floor, peak memory, speed."""
    rows: list[tuple[Value, ...]] = [
        (
            name,
            timing.engine,
            spread(timing.seconds()),
            spread(timing.ratios()),
            over_floor(timing, counted[name]),
            timing.steps[-1]["peak_bytes"] / 2**30,
            timing.median(lambda step: step["tokens"] / step["cpu_seconds"]),
        )
        for name, engines in timings.items()
        for timing in engines
    ]
    columns = ("case", "engine", "seconds a step", "ratio to ours", "x floor", "peak GiB", "tokens/s")
    notes = ["min–median–max over steps; ratios are to the step of ours taken beside each: for ours, the A/A ratio."]
    for name, engines in timings.items():
        rates = counted[name]["rates"]
        notes.append(
            f"{name}: {engines[0].case.words}; floor at {rates['flops'] / 1e9:.0f} GFLOP/s and "
            f"{rates['bytes'] / 1e9:.1f} GB/s, measured, scaled by response tokens."
        )
    return Table(title="a PPO step", columns=columns, rows=tuple(rows), notes=tuple(notes))


def phases(timings: Mapping[str, list[Timing]], counted: Mapping[str, Mapping[str, Any]]) -> Table:
    """Ours by phase: seconds, tokens a second, distance from the floor."""
    rows: list[tuple[Value, ...]] = []
    for name, (ours_alone, *_) in timings.items():
        for phase in PHASES:
            seconds = ours_alone.median(lambda step, phase=phase: step["phases"][phase])  # type: ignore[misc]
            speed = ours_alone.median(lambda step, phase=phase: step["tokens"] / step["phases"][phase])  # type: ignore[misc]
            rows.append((name, phase, seconds, speed, over_floor(ours_alone, counted[name], phase)))
    columns = ("case", "phase", "seconds", "response tokens/s", "x floor")
    return Table(title="phases", columns=columns, rows=tuple(rows))


def noise(timings: Mapping[str, list[Timing]], counted: Mapping[str, Mapping[str, Any]]) -> Table:
    """What rounding does before anything is learned."""
    rows: list[tuple[Value, ...]] = []
    for name, (ours_alone, *_) in timings.items():
        seen, case = counted[name]["noise"], ours_alone.case
        bound, _ = log_ratio_bounds(DTYPES[case.dtype])
        rows.append((name, case.dtype, case.four_bit, seen["max"], seen["mean"], bound, seen["reference"]))
    columns = ("case", "computes in", "4-bit", "|log ratio|, max", "mean", "allowed", "|policy - reference|, max")
    note = "Nats a token. Log ratio: a minibatch of one row against the rollout, before the first optimizer step."
    return Table(title="noise", columns=columns, rows=tuple(rows), notes=(note,))


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
    others = 2 * len(settings.variants) * (settings.repeats + 1) if settings.against != "nothing" else 0
    total = len(settings.cases) * (2 + 2 * settings.repeats + others)
    with tqdm(total=total, desc="steps", unit="step", dynamic_ncols=True) as bar:
        found = {name: timed(name, settings, bar) for name in settings.cases}
    timings, counted = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
    publish(comparison(timings, counted), {}, out, console)
    publish(phases(timings, counted), {}, out, console, name="phases")
    publish(noise(timings, counted), {}, out, console, name="noise")


if __name__ == "__main__":
    main()
