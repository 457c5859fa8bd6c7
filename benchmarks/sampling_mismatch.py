"""Is "sparse diverges when responses are long" sparsity, or the published stack's sampling mistakes?

The same arms and seeds under our sampler and under each mistake of the published stack (benchmarks.runs.samplers), at
short and at long responses: failed runs, runs with a negative KL, scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting import figures
from benchmarks.reporting.outcomes import LAST, failed, negative_kl, threshold
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.report import number
from benchmarks.reporting.statistics import summarise
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import Comparison, Panel, Script, Study
from benchmarks.runs.samplers import SAMPLERS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which mistakes, at which lengths."""

    samplers: tuple[str, ...] = tuple(SAMPLERS)
    """Samplers compared; "matched" is ours."""
    lengths: tuple[tuple[int, int], ...] = ((8, 16), (90, 110))
    """Ranges of response tokens, upper end excluded."""
    failed_below: float | None = None
    """Mean score of the last 10 steps below which a run failed (paper: 6); null: midway from start to the best arm of
    our sampler at that length."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.samplers if name not in SAMPLERS]
        if unknown or "matched" not in self.samplers:
            raise ValueError(f"samplers must be of {', '.join(SAMPLERS)}, matched among them, got {self.samplers}")
        for low, high in self.lengths:
            if not 1 <= low < high:
                raise ValueError(f"lengths must be ranges (low, high) with 1 <= low < high, got {(low, high)}")


def panels(_: Comparison, options: Options) -> Sequence[Panel]:
    """A panel for every length and sampler."""
    return [
        Panel(
            name=name_of(length, sampler),
            changes={"min_length": length[0], "max_length": [length[0], length[1] - 1]},
            sampler=sampler,
        )
        for length in options.lengths
        for sampler in options.samplers
    ]


def name_of(length: tuple[int, int], sampler: str) -> str:
    """Folder and title of a panel."""
    return f"{length[0]}-{length[1]}-{sampler}"


def write(study: Study, options: Options, out: Path, console: Console) -> None:
    """mismatch.png and .pdf, table.md and .csv."""
    publish(summary(study, options), {"mismatch": draw(study, options)}, out, console)


def draw(study: Study, options: Options) -> Figure:
    """Every run's score above and KL below, a column for every length and sampler."""
    with figures.style():
        columns = len(study.results)
        figure = figures.grid(2 * columns, columns=columns, width=2.3)
        for metric, row in (("score", figure.axes[:columns]), ("kl", figure.axes[columns:])):
            for axes, (name, results) in zip(row, study.results.items(), strict=True):
                figures.runs(axes, results, metric)
                axes.set_title(f"{name}: {metric}", loc="left")
                if metric == "kl":
                    axes.axhline(0, color="0.6", linewidth=0.6)
        results = next(iter(study.results.values()))
        figures.legend(figure, figure.axes[0], f"{results.task}: every run (seeds: {len(results.seeds)})")
    return figure


def summary(study: Study, options: Options) -> Table:
    """A row for every length, sampler and arm."""
    rows, notes = [], []
    for length in options.lengths:
        limit = threshold(study.results[name_of(length, "matched")], options.failed_below)
        notes.append(f"{length[0]}-{length[1]} tokens: failed below {number(limit.value)} ({limit.why}).")
        for sampler in options.samplers:
            results = study.results[name_of(length, sampler)]
            rows += [
                (
                    f"{length[0]}-{length[1]}",
                    sampler,
                    arm,
                    summarise(results.per_seed(arm, "score")),
                    summarise(results.per_seed(arm, "score", LAST)),
                    f"{failed(results, arm, limit)} of {len(results.seeds)}",
                    f"{negative_kl(results, arm)} of {len(results.seeds)}",
                    summarise(results.per_seed(arm, "kl", LAST)),
                    summarise(results.per_seed(arm, "length", LAST)),
                )
                for arm in results.arms
            ]
    columns = (
        *("tokens", "sampler", "arm", "average score", f"score, last {LAST}", "failed runs", "negative KL"),
        *(f"KL, last {LAST}", f"length, last {LAST}"),
    )
    notes.append(f"Negative KL: runs whose last {LAST} steps average below 0, which no KL between two policies is.")
    return Table(title="the published stack's sampling", columns=columns, rows=tuple(rows), notes=tuple(notes))


SCRIPT = Script(
    name="sampling_mismatch",
    summary="The same arms under our sampler and under the published stack's mistakes: EOS banned while sampling but "
    "not in the log-probabilities, and dropout while sampling. PPO settings are --ppo.NAME.",
    write=write,
    panels=panels,
    options=Options,
    defaults={"controls": ""},
)

if __name__ == "__main__":
    SCRIPT.main()
