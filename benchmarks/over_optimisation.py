"""Proxy against gold: how far a method can climb the reward model's score before the true one stops following.

Gold is the embedded task's true score, or a second reward model trained on other reviews (``prepare --gold true``),
which PPO never sees. Both are shown as gains in standard deviations of the first step's responses, over KL.
"""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting import figures
from benchmarks.reporting.outcomes import blocks, parting, standardised
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.statistics import Array, Results
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import Script, Study


@dataclass(frozen=True, kw_only=True)
class Options:
    """How curves are smoothed."""

    block: int = 10
    """Steps averaged into one point."""

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be 1 or more, got {self.block}")


def write(study: Study, options: Options, out: Path, console: Console) -> None:
    """proxy_gold.png and .pdf, table.md and .csv.

    Raises:
        ValueError: the task knows no gold score.
    """
    results = study.only
    if any("gold_score" not in curves for curves in results.curves.values()):
        raise ValueError(
            f"task {results.task!r} has no gold score: use --task toy, or positive_generation with models made by "
            "prepare --gold true"
        )
    publish(summary(results, options), {"proxy_gold": draw(results, options)}, out, console)


def gains(results: Results, arm: str) -> tuple[Array, Array]:
    """Proxy and gold of an arm, standardised, (seed, step)."""
    curves = results.curves[arm]
    return (
        standardised(curves["score"], curves["score_std"]),
        standardised(curves["gold_score"], curves["gold_std"]),
    )


def draw(results: Results, options: Options) -> Figure:
    """Proxy and gold over KL side by side on one scale, and what is left between them."""
    with figures.style():
        figure = figures.grid(3)
        proxy_axes, gold_axes, gap_axes = figure.axes
        for arm, (colour, dash) in figures.line_styles(results.arms).items():
            kl = blocks(results.curves[arm]["kl"], options.block).mean(0)
            proxy, gold = (blocks(curve, options.block).mean(0) for curve in gains(results, arm))
            for axes, curve in ((proxy_axes, proxy), (gold_axes, gold), (gap_axes, proxy - gold)):
                axes.plot(kl, curve, color=colour, linestyle=dash, label=arm)
                axes.plot(kl[-1:], curve[-1:], "o", color=colour, markersize=4)
        for axes, title in zip(figure.axes, ("proxy score", "gold score", "proxy − gold"), strict=True):
            axes.set_title(f"{title} (gain, std of step 1)", loc="left")
            axes.set_xlabel("KL (nats a response)")
        low = min(axes.get_ylim()[0] for axes in (proxy_axes, gold_axes))
        high = max(axes.get_ylim()[1] for axes in (proxy_axes, gold_axes))
        for axes in (proxy_axes, gold_axes):
            axes.set_ylim(low, high)
        title = f"{results.task} (means over {len(results.seeds)} seeds and {options.block} steps)"
        figures.legend(figure, proxy_axes, title)
    return figure


def summary(results: Results, options: Options) -> Table:
    """Where proxy and gold part, for every arm."""
    rows = []
    for arm in results.arms:
        proxy, gold = gains(results, arm)
        parted = parting(results.curves[arm]["kl"], proxy, gold, size=options.block)
        end = float(blocks(results.curves[arm]["kl"], options.block).mean(0)[-1])
        rows.append(
            (
                arm,
                "not reached" if parted.kl is None else parted.kl,
                end,
                parted.gold_best,
                parted.gold_end,
                parted.proxy_best,
                parted.proxy_end,
            )
        )
    return Table(
        title=f"{results.task}: where proxy and gold part",
        columns=(
            *("arm", "KL where they part", "KL at the end", "gold, at its best", "gold, at the end"),
            *("proxy, at gold's best", "proxy, at the end"),
        ),
        rows=tuple(rows),
        notes=(
            f"Gains since step 1 in standard deviations of its responses, means over seeds and {options.block} steps. "
            "They part at the block with the highest gold score, if gold ends lower by more than its standard error "
            "over seeds while the proxy does not.",
        ),
    )


SCRIPT = Script(
    name="over_optimisation",
    summary="Proxy score against gold score by KL, for every method, to where they part. PPO settings are --ppo.NAME.",
    write=write,
    options=Options,
    defaults={"steps": 120},
)

if __name__ == "__main__":
    SCRIPT.main()
