"""How fast is a PPO step, phase by phase, against the machine's floor and against the published stack?

Each engine runs in a process of its own, on a CPU with one thread (seconds are CPU seconds of the process), and is
timed after a warm-up step: ours beside itself and, with ``--against trl-0.7.4``, the published stack as it was run,
with fused Adam, and with our allocator setting too, each step beside one of ours on the same prompts and lengths.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from rich.console import Console
from tqdm import tqdm

from benchmarks.base.command_line import parse
from benchmarks.base.run_folder import measurement_folder
from benchmarks.base.settings_checks import require_at_least, require_known
from benchmarks.cost.engine_processes import VARIANTS, Ask, ours, published, require_published_python
from benchmarks.cost.timed_step import PHASES, Case
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value, number
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
FIXED = {"do": "fixed", "prompt": [5, 6, 7], "response": [8, 9, 10, 11]}
TOLERANCE = 1e-3
Step = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is timed."""

    cases: tuple[str, ...] = ("paper", "minibatch-16", "long")
    """Of paper, minibatch-16, long, long-small-passes, lora, bf16, four-bit, default-allocator, tiny."""
    repeats: int = 3
    """Timed steps of each engine."""
    against: Literal["nothing", "trl-0.7.4"] = "nothing"
    """The stack the paper was published on; in an environment of its own."""
    variants: tuple[str, ...] = tuple(VARIANTS)
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
        require_known(self, cases=CASES, variants=VARIANTS)
        require_at_least(self, repeats=1)
        require_published_python(self.against, self.published_python)
        if self.against == "nothing":
            return
        if self.device != "cpu":
            raise ValueError("the published stack is timed on a CPU only: leave --device cpu")
        for name in self.cases:
            if (CASES[name].dtype, CASES[name].training) != ("float32", "full"):
                raise ValueError(f"the published stack is timed in float32 and full fine-tuning only, not on {name!r}")
        if self.sweep:
            raise ValueError("--sweep true times ours alone: leave out --against")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Steps of one engine on one case in the order they were taken, each with the step of ours taken beside it."""

    engine: str
    pairs: tuple[tuple[Step, Step], ...]

    @property
    def steps(self) -> list[Step]:
        """The engine's own."""
        return [step for step, _ in self.pairs]

    def ratios(self) -> list[float]:
        """CPU seconds over those of the step of ours beside each."""
        return [step["cpu_seconds"] / ours["cpu_seconds"] for step, ours in self.pairs]


@dataclass(frozen=True, kw_only=True)
class TimedCase:
    """What was found on a case: timings, ours first; what one step of ours asks of the machine; and its rounding."""

    case: Case
    timings: tuple[Timing, ...]
    counted: Mapping[str, Any]
    noise: Mapping[str, float]


def timed(name: str, settings: Settings, bar: "tqdm[Any]") -> TimedCase:
    """Steps of every engine on a case, each beside one of ours; one step of ours is counted in a process of its own, as
    counting takes memory. One other engine exists at a time, so that memory is never short.

    Raises:
        RuntimeError: the engines did not do the same work.
    """
    case = replace(CASES[name], device=settings.device)
    with ours(case) as engine:
        noise, counted = engine(do="noise"), engine(do="count")
        bar.update()
    with ours(case) as engine, tempfile.TemporaryDirectory() as folder:

        def step() -> Step:
            bar.update()
            return engine(do="step")

        step()  # makes the optimizer's states
        timings = [Timing(engine="ours", pairs=tuple((step(), step()) for _ in range(settings.repeats)))]
        if settings.against != "nothing":
            folders, before = engine(do="save", folder=folder), engine(**FIXED)
            for variant in settings.variants:
                label = f"{settings.against}, {variant}"
                with published(case, folders, variant, python=settings.published_python) as other:
                    require_same(before, other(**FIXED), before, label, by=TOLERANCE)
                    beside(step, other, label, bar)  # makes the optimizer's states
                    pairs = tuple(beside(step, other, label, bar) for _ in range(settings.repeats))
                timings.append(Timing(engine=label, pairs=pairs))
    return TimedCase(case=case, timings=tuple(timings), counted=counted, noise=noise)


def beside(step: Callable[[], Step], other: Ask, label: str, bar: "tqdm[Any]") -> tuple[Step, Step]:
    """A step of the other engine on what ours has just worked on, and ours."""
    mine = step()
    theirs = other(do="step", prompts=mine["prompts"], lengths=mine["lengths"])
    bar.update()
    require_same(mine, theirs, ("tokens", "optimizer_steps"), label)
    return theirs, mine


def require_same(mine: Step, theirs: Step, what: Iterable[str], label: str, *, by: float = 0) -> None:
    """Raises RuntimeError unless both engines report the same numbers, but for rounding ``by`` so much."""
    for name in what:
        if abs(mine[name] - theirs[name]) > by:
            raise RuntimeError(f"{name} is {mine[name]} in ours and {theirs[name]} in {label}: not the same work")


def min_median_max(values: Iterable[float]) -> str:
    """min–median–max, three digits each."""
    found = list(values)
    return "–".join(number(reduce(found)) for reduce in (min, median, max))


def over_floor(timing: Timing, counted: Mapping[str, Any], phase: str | None = None) -> float | None:
    """Median of seconds over the least the machine could take, that of the counted step scaled by response tokens;
    None for a phase that needs no arithmetic to speak of."""
    least: float = sum(counted["floor"].values()) if phase is None else counted["floor"][phase]
    per_token = least / counted["tokens"]
    seconds: list[float] = [step["cpu_seconds"] if phase is None else step["phases"][phase] for step in timing.steps]
    pairs = zip(seconds, timing.steps, strict=True)
    return median(taken / (per_token * step["tokens"]) for taken, step in pairs) if least else None


def engines_table(found: Mapping[str, TimedCase]) -> Table:
    """A row for every case and engine: seconds, ratio to ours, distance from the floor, peak memory, speed."""
    rows: list[tuple[Value, ...]] = [
        (
            name,
            timing.engine,
            min_median_max(step["cpu_seconds"] for step in timing.steps),
            min_median_max(timing.ratios()),
            over_floor(timing, of.counted),
            timing.steps[-1]["peak_bytes"] / 2**30,
            median(step["tokens"] / step["cpu_seconds"] for step in timing.steps),
        )
        for name, of in found.items()
        for timing in of.timings
    ]
    columns = ("case", "engine", "seconds a step", "ratio to ours", "x floor", "peak GiB", "tokens/s")
    notes = ["min–median–max over steps; ratios are to the step of ours taken beside each: for ours, the A/A ratio."]
    for name, of in found.items():
        flops, read = of.counted["rates"]["flops"] / 1e9, of.counted["rates"]["bytes"] / 1e9
        floor = f"floor at {flops:.0f} GFLOP/s and {read:.1f} GB/s, measured, scaled by response tokens"
        notes.append(f"{name}: {of.case.words}; {floor}.")
    return Table(title="a PPO step", columns=columns, rows=tuple(rows), notes=tuple(notes))


def phases_table(found: Mapping[str, TimedCase]) -> Table:
    """Ours by phase: seconds, tokens a second, distance from the floor."""
    rows: list[tuple[Value, ...]] = []
    for name, of in found.items():
        for phase in PHASES:
            seconds = [step["phases"][phase] for step in of.timings[0].steps]
            speeds = [step["tokens"] / step["phases"][phase] for step in of.timings[0].steps]
            floor = over_floor(of.timings[0], of.counted, phase)
            rows.append((name, phase, median(seconds), median(speeds), floor))
    columns = ("case", "phase", "seconds", "response tokens/s", "x floor")
    return Table(title="phases", columns=columns, rows=tuple(rows))


def noise_table(found: Mapping[str, TimedCase]) -> Table:
    """What rounding does before anything is learned."""
    rows: list[tuple[Value, ...]] = []
    for name, of in found.items():
        seen, (bound, _) = of.noise, log_ratio_bounds(DTYPES[of.case.dtype])
        rows.append((name, of.case.dtype, of.case.four_bit, seen["max"], seen["mean"], bound, seen["reference"]))
    columns = ("case", "computes in", "4-bit", "|log ratio|, max", "mean", "allowed", "|policy - reference|, max")
    note = "Nats a token. Log ratio: a minibatch of one row against the rollout, before the first optimizer step."
    return Table(title="noise", columns=columns, rows=tuple(rows), notes=(note,))


def cases(settings: Settings) -> dict[str, Table]:
    """The tables of the cases asked for, by the name of their files."""
    others = 2 * len(settings.variants) * (settings.repeats + 1) if settings.against != "nothing" else 0
    total = len(settings.cases) * (2 + 2 * settings.repeats + others)
    with tqdm(total=total, desc="steps", unit="step", dynamic_ncols=True) as bar:
        found = {name: timed(name, settings, bar) for name in settings.cases}
    return {"table": engines_table(found), "phases": phases_table(found), "noise": noise_table(found)}


def sweep(settings: Settings) -> dict[str, Table]:
    """Cost per response token by prompts per rollout and by response length; "x first" is against the first of each."""
    asked = [
        *(("prompts", n, replace(SWEEP, prompts=n)) for n in (16, 32, 64, 128, 256)),
        *(("response tokens", n, replace(SWEEP, lengths=(n, n))) for n in (32, 64, 128, 256, 512, 1024)),
    ]
    rows: list[tuple[Value, ...]] = []
    first: dict[str, tuple[float, float]] = {}
    for swept, value, case in tqdm(asked, desc="sweep", unit="case", dynamic_ncols=True):
        with ours(replace(case, device=settings.device)) as engine:
            counted = engine(do="count")
            steps = [engine(do="step") for _ in range(settings.repeats)]
        cost = median(step["cpu_seconds"] / step["tokens"] for step in steps)
        flops = counted["flops"] / counted["tokens"]
        first_cost, first_flops = first.setdefault(swept, (cost, flops))
        rows.append((swept, value, 1e3 * cost, cost / first_cost, flops / first_flops))
    columns = ("swept", "value", "ms a response token", "x first", "FLOPs x first")
    return {"sweep": Table(title="growth of cost", columns=columns, rows=tuple(rows))}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    settings = parse(Settings, "benchmarks.throughput", argv)
    out, console = measurement_folder(settings, "benchmarks.throughput"), Console()
    for name, table in (sweep(settings) if settings.sweep else cases(settings)).items():
        publish(table, {}, out, console, name=name)


if __name__ == "__main__":
    main()
