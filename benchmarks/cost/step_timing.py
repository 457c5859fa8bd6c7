"""PPO steps of our engine and of the published stack, timed side by side: the work of ``benchmarks.throughput``.

Cases come in; tables of seconds, ratios, phases and rounding come out.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from tqdm import tqdm

from benchmarks.cost.cases import Case
from benchmarks.cost.engine_processes import Ask, PublishedStack, ours, published
from benchmarks.cost.timed_step import PHASES
from benchmarks.reporting.tables import Table, Value, number

SWEEP = Case(layers=4, hidden=256, vocab=8_192, minibatch_size=16, lengths=(32, 32))
FIXED = {"do": "fixed", "prompt": [5, 6, 7], "response": [8, 9, 10, 11]}
TOLERANCE = 1e-3
Step = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Steps of one engine on one case, in order, each with the step of ours that was taken beside it."""

    engine: str
    pairs: tuple[tuple[Step, Step], ...]

    @property
    def steps(self) -> list[Step]:
        """The engine's own steps."""
        return [step for step, _ in self.pairs]

    def ratios(self) -> list[float]:
        """CPU seconds of each step, divided by those of the step of ours beside it."""
        return [step["cpu_seconds"] / ours["cpu_seconds"] for step, ours in self.pairs]


@dataclass(frozen=True, kw_only=True)
class TimedCase:
    """Figures of one case: the timings, ours first; what one step of ours asks of the machine; what rounding does."""

    case: Case
    timings: tuple[Timing, ...]
    counted: Mapping[str, Any]
    noise: Mapping[str, float]


def timed(case: Case, repeats: int, stack: PublishedStack | None, bar: "tqdm[Any]") -> TimedCase:
    """Steps of every engine on a case, each beside one of ours. One step of ours is counted in a process of its own,
    because counting takes memory. Only one other engine exists at a time, so that memory never runs short.

    Raises:
        RuntimeError: the engines did not do the same work.
    """
    with ours(case) as engine:
        noise, counted = engine(do="noise"), engine(do="count")
        bar.update()
    with ours(case) as engine, tempfile.TemporaryDirectory() as folder:

        def step() -> Step:
            bar.update()
            return engine(do="step")

        step()  # makes the optimizer's states
        timings = [Timing(engine="ours", pairs=tuple((step(), step()) for _ in range(repeats)))]
        if stack is not None:
            models, before = engine(do="save", folder=folder), engine(**FIXED)
            for variant in stack.variants:
                label = f"{stack.name}, {variant}"
                with published(stack, variant, case, models) as other:
                    require_same(before, other(**FIXED), before, label, by=TOLERANCE)
                    beside(step, other, label, bar)  # makes the optimizer's states
                    pairs = tuple(beside(step, other, label, bar) for _ in range(repeats))
                timings.append(Timing(engine=label, pairs=pairs))
    return TimedCase(case=case, timings=tuple(timings), counted=counted, noise=noise)


def beside(step: Callable[[], Step], other: Ask, label: str, bar: "tqdm[Any]") -> tuple[Step, Step]:
    """A step of ours, and one of the other engine on the same prompts and lengths; the other engine's first."""
    mine = step()
    theirs = other(do="step", prompts=mine["prompts"], lengths=mine["lengths"])
    bar.update()
    require_same(mine, theirs, ("tokens", "optimizer_steps"), label)
    return theirs, mine


def require_same(mine: Step, theirs: Step, what: Iterable[str], label: str, *, by: float = 0) -> None:
    """Raise RuntimeError unless both engines report the same numbers, up to a difference of ``by``."""
    for name in what:
        if abs(mine[name] - theirs[name]) > by:
            raise RuntimeError(f"{name} is {mine[name]} in ours and {theirs[name]} in {label}: not the same work")


def min_median_max(values: Iterable[float]) -> str:
    """Minimum–median–maximum, three digits each."""
    found = list(values)
    return "–".join(number(reduce(found)) for reduce in (min, median, max))


def over_floor(timing: Timing, counted: Mapping[str, Any], phase: str | None = None) -> float | None:
    """Median of a step's seconds divided by the least that the machine could take: that of the counted step, scaled by
    response tokens. For the whole step, or for one phase; None for a phase with no work to count."""
    least: float = sum(counted["floor"].values()) if phase is None else counted["floor"][phase]
    per_token = least / counted["tokens"]
    seconds: list[float] = [step["cpu_seconds"] if phase is None else step["phases"][phase] for step in timing.steps]
    pairs = zip(seconds, timing.steps, strict=True)
    return median(taken / (per_token * step["tokens"]) for taken, step in pairs) if least else None


def engines_table(found: Mapping[str, TimedCase]) -> Table:
    """A row per case and engine: seconds, ratio to ours, multiple of the floor, peak memory, speed."""
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
    columns = ("case", "engine", "seconds per step", "ratio to ours", "x floor", "peak GiB", "tokens/s")
    notes = ["Minimum–median–maximum over steps. Each ratio is to a step of ours taken beside it, also for ours."]
    for name, of in found.items():
        flops, read = of.counted["rates"]["flops"] / 1e9, of.counted["rates"]["bytes"] / 1e9
        floor = f"floor at {flops:.0f} GFLOP/s and {read:.1f} GB/s, measured, scaled by response tokens"
        notes.append(f"{name}: {of.case.words}; {floor}.")
    return Table(title="a PPO step", columns=columns, rows=tuple(rows), notes=tuple(notes))


def phases_table(found: Mapping[str, TimedCase]) -> Table:
    """Our engine by phase: seconds, tokens per second, multiple of the floor."""
    rows: list[tuple[Value, ...]] = []
    for name, of in found.items():
        for phase in PHASES:
            seconds = [step["phases"][phase] for step in of.timings[0].steps]
            speeds = [step["tokens"] / step["phases"][phase] for step in of.timings[0].steps]
            floor = over_floor(of.timings[0], of.counted, phase)
            rows.append((name, phase, median(seconds), median(speeds), floor))
    columns = ("case", "phase", "seconds", "response tokens/s", "x floor")
    return Table(title="phases", columns=columns, rows=tuple(rows))


def noise_table(found: Mapping[str, tuple[Case, Mapping[str, float]]]) -> Table:
    """What rounding does before anything is learned, by case."""
    figures = {
        "|log ratio|, max": "max",
        "mean": "mean",
        "allowed": "allowed",
        "|policy - reference|, max": "reference",
        "|drawn - evaluated|, max": "drawn max",
        "mean of it": "drawn mean",
    }
    rows: list[tuple[Value, ...]] = [
        (name, case.precision, *(seen[key] for key in figures.values())) for name, (case, seen) in found.items()
    ]
    notes = (
        "Nats per token. The log ratio is that of single rows to the whole rollout, before the first optimizer step.",
        "Drawn: log-probabilities in the pass that samples, one token at a time. Evaluated: those that are trained on.",
    )
    return Table(title="noise", columns=("case", "computes in", *figures), rows=tuple(rows), notes=notes)


def noise_tables(cases: Mapping[str, Case]) -> dict[str, Table]:
    """What rounding does in each case, and nothing timed; by the name of its file.

    Raises:
        RuntimeError: an engine ended.
    """
    found = {}
    for name, case in tqdm(cases.items(), desc="noise", unit="case", dynamic_ncols=True, disable=None):
        with ours(case) as engine:
            found[name] = (case, engine(do="noise"))
    return {"noise": noise_table(found)}


def case_tables(cases: Mapping[str, Case], repeats: int, stack: PublishedStack | None) -> dict[str, Table]:
    """Time ``repeats`` steps of each engine on each case; the tables by the names of their files.

    Raises:
        RuntimeError: the engines did not do the same work, or one of them ended.
    """
    others = 2 * len(stack.variants) * (repeats + 1) if stack is not None else 0
    total = len(cases) * (2 + 2 * repeats + others)
    with tqdm(total=total, desc="steps", unit="step", dynamic_ncols=True, disable=None) as bar:
        found = {name: timed(case, repeats, stack, bar) for name, case in cases.items()}
    noise = noise_table({name: (of.case, of.noise) for name, of in found.items()})
    return {"table": engines_table(found), "phases": phases_table(found), "noise": noise}


def sweep_tables(repeats: int, device: Literal["cpu", "cuda"]) -> dict[str, Table]:
    """Cost per response token by prompts per rollout and by response length; "x first" is against the first of each."""
    asked = [
        *(("prompts", n, replace(SWEEP, prompts=n)) for n in (16, 32, 64, 128, 256)),
        *(("response tokens", n, replace(SWEEP, lengths=(n, n))) for n in (32, 64, 128, 256, 512, 1024)),
    ]
    rows: list[tuple[Value, ...]] = []
    first: dict[str, tuple[float, float]] = {}
    for swept, value, case in tqdm(asked, desc="sweep", unit="case", dynamic_ncols=True, disable=None):
        with ours(replace(case, device=device)) as engine:
            counted = engine(do="count")
            steps = [engine(do="step") for _ in range(repeats)]
        cost = median(step["cpu_seconds"] / step["tokens"] for step in steps)
        flops = counted["flops"] / counted["tokens"]
        first_cost, first_flops = first.setdefault(swept, (cost, flops))
        rows.append((swept, value, 1e3 * cost, cost / first_cost, flops / first_flops))
    columns = ("swept", "value", "ms per response token", "x first", "FLOPs x first")
    return {"sweep": Table(title="growth of cost", columns=columns, rows=tuple(rows))}
