"""Proxy against gold: how far the reward model's score can rise before the true score stops rising with it.

Gold is the embedded task's true score, or a second reward model trained on other reviews (``prepare --gold true``),
which PPO never sees. Both are shown as gains in standard deviations of the first step's responses, over KL.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.experiments.settings import OverOptimisation
from benchmarks.reporting import figures
from benchmarks.reporting.curve_readings import blocks, parting, standardised
from benchmarks.reporting.statistics import Array, Results
from benchmarks.reporting.tables import Table
from benchmarks.runs.comparison import ComparisonResults, Panel
from benchmarks.runs.experiment import Experiment, published
from benchmarks.runs.settings import ComparisonSettings
from rlhf_core.names import counted

COLUMNS = (
    *("arm", "KL where they part", "KL at the end", "gold, at its best", "gold, at the end"),
    *("proxy, at gold's best", "proxy, at the end"),
)


def panels(settings: ComparisonSettings, _: OverOptimisation) -> Sequence[Panel]:
    """One, as of any comparison; raises ValueError, before anything runs, where there will be no gold score."""
    reviews = settings.task == "positive_generation" and settings.models is not None
    if settings.task != "toy" and not (reviews and Path(str(settings.models), "gold").is_dir()):
        raise ValueError(
            f"task {settings.task!r} with models {settings.models!r} has no gold score: use --task toy, or "
            "positive_generation with --models made by prepare --gold true"
        )
    return (Panel(),)


def gains(results: Results, arm: str) -> tuple[Array, Array]:
    """Proxy and gold of an arm, standardised, (seed, step)."""
    curves = results.curves[arm]
    proxy = standardised(curves["score"], curves["score_std"])
    return proxy, standardised(curves["gold_score"], curves["gold_std"])


@figures.style()
def draw(done: ComparisonResults, options: OverOptimisation) -> Figure:
    """Proxy and gold over KL side by side on one scale, and what is left between them."""
    results, figure = done.only, figures.grid(3)
    for arm in results.arms:
        kl = blocks(results.curves[arm]["kl"], options.block).mean(0)
        proxy, gold = (blocks(curve, options.block).mean(0) for curve in gains(results, arm))
        for axes, curve in zip(figure.axes, (proxy, gold, proxy - gold), strict=True):
            figures.path(axes, kl, curve, results, arm)
    for axes, title in zip(figure.axes, ("proxy score", "gold score", "proxy − gold"), strict=True):
        axes.set_title(f"{title} (gain, std of step 1)", loc="left")
        figures.value_axis(axes, "KL (nats per response)")
    figures.one_scale(figure.axes[:2])
    title = f"{results.task} (means over {results.counted_seeds} and {counted(options.block, 'step')})"
    figures.legend(figure, figure.axes[0], title)
    return figure


def table(done: ComparisonResults, options: OverOptimisation) -> Table:
    """The KL at which proxy and gold diverge, for every arm."""
    results, rows = done.only, []
    for arm in results.arms:
        kl, (proxy, gold) = results.curves[arm]["kl"], gains(results, arm)
        parted = parting(kl, proxy, gold, size=options.block)
        at, end = "not reached" if parted.kl is None else parted.kl, float(blocks(kl, options.block).mean(0)[-1])
        rows.append((arm, at, end, parted.gold_best, parted.gold_end, parted.proxy_best, parted.proxy_end))
    note = (
        "Gains since step 1 in standard deviations of its responses, means over seeds and "
        f"{counted(options.block, 'step')}. They part at the block with the highest gold score, if gold ends lower by "
        "more than its standard error over seeds while the proxy does not."
    )
    title = f"{results.task}: where proxy and gold part"
    return Table(title=title, columns=COLUMNS, rows=tuple(rows), notes=(note,))


EXPERIMENT = Experiment(write=published("proxy_gold", table, draw), folder="over_optimisation", panels=panels)
