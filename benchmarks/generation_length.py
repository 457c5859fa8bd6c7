"""Longer responses, sparser reward: the paper's figure 4, with every run drawn and failures counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting import figures
from benchmarks.reporting.outcomes import LAST, failed, threshold
from benchmarks.reporting.paper_curves import of_arms, paper_curves, require_same_task
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.report import number
from benchmarks.reporting.statistics import summarise, variance_across_seeds
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import Comparison, Panel, Script, Study


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which lengths."""

    lengths: tuple[tuple[int, int], ...] = ((20, 30), (40, 60), (90, 110), (140, 160))
    """Ranges of response tokens: the lower end is the minimum; each row's maximum is drawn from the range."""
    failed_below: float | None = None
    """Mean score of the last 10 steps below which a run failed (paper: 6); null: midway from start to the best arm."""

    def __post_init__(self) -> None:
        for low, high in self.lengths:
            if not 1 <= low < high:
                raise ValueError(f"lengths must be ranges (low, high) with 1 <= low < high, got {(low, high)}")


def panels(_: Comparison, options: Options) -> Sequence[Panel]:
    """A panel a range; its upper end is excluded, as by the paper's sampler."""
    return [
        Panel(name=f"{low}-{high}", changes={"min_length": low, "max_length": [low, high - 1]})
        for low, high in options.lengths
    ]


def write(study: Study, options: Options, out: Path, console: Console) -> None:
    """lengths.png and .pdf, table.md and .csv."""
    require_same_task(study.settings.paper_curves, study.settings.task)
    publish(summary(study, options), {"lengths": draw(study)}, out, console)


def draw(study: Study) -> Figure:
    """Above, means with their bands; below, every run of every arm."""
    with figures.style():
        figure = figures.grid(2 * len(study.results), columns=len(study.results))
        above, below = figure.axes[: len(study.results)], figure.axes[len(study.results) :]
        for axes, single, (name, results) in zip(above, below, study.results.items(), strict=True):
            figures.behind(axes, of_arms(paper_curves(study.settings.paper_curves, "length_sweep", name), results))
            figures.panel(axes, results, "score")
            axes.set_title(f"{name} tokens", loc="left")
            figures.runs(single, results, "score")
            single.set_title("every run", loc="left")
        results = next(iter(study.results.values()))
        figures.legend(figure, above[0], f"{results.task}: score ({figures.band_meaning(results)})")
    return figure


def summary(study: Study, options: Options) -> Table:
    """A row for every range and arm."""
    rows, notes = [], []
    for name, results in study.results.items():
        limit = threshold(results, options.failed_below)
        notes.append(f"{name}: failed below {number(limit.value)} ({limit.why}).")
        rows += [
            (
                name,
                arm,
                summarise(results.per_seed(arm, "score")),
                summarise(results.per_seed(arm, "score", LAST)),
                variance_across_seeds(results.curves[arm]["score"][:, -LAST:]) ** 0.5,
                f"{failed(results, arm, limit)} of {len(results.seeds)}",
                summarise(results.per_seed(arm, "kl", LAST)),
                summarise(results.per_seed(arm, "length", LAST)),
            )
            for arm in results.arms
        ]
    columns = (
        *("tokens", "arm", "average score", f"score, last {LAST}", f"std over seeds, last {LAST}", "failed runs"),
        *(f"KL, last {LAST}", f"length, last {LAST}"),
    )
    return Table(title="score by response length", columns=columns, rows=tuple(rows), notes=tuple(notes))


SCRIPT = Script(
    name="generation_length",
    summary="Sweep the response length (figure 4 of the paper): means, single runs, failed runs. PPO settings are "
    "--ppo.NAME.",
    write=write,
    panels=panels,
    options=Options,
)

if __name__ == "__main__":
    SCRIPT.main()
