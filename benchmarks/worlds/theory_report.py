"""Methods checked in worlds of all seeds, and what was found as tables and a figure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from tqdm import tqdm

from benchmarks.reporting import figures
from benchmarks.reporting.publishing import publish
from benchmarks.reporting.tables import Table, Value
from benchmarks.worlds import declared_properties as properties
from benchmarks.worlds import general_claims as claims
from benchmarks.worlds.estimator_report import bias_table, estimator_gradients, noise_table
from benchmarks.worlds.tabular_evidence import Unanswerable
from rlhf_core.types import Redistributor

Methods = Mapping[str, Callable[[], Redistributor]]
COLUMNS = (
    *("method", "verdict", "sum error", "conserving", "later tokens change", "causal", "GAE error", "shaping"),
    *("gradient cosine", "least", "lambda .95, no critic", "score left, last token", "KL growth"),
    *("push at +1", "push at -1"),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many worlds, tokens besides EOS, and the longest response in tokens."""

    worlds: int
    words: int
    longest: int

    def made(self, seed: int) -> properties.Worlds:
        """The worlds of one seed."""
        return properties.make_worlds(seed, words=self.words, longest=self.longest)


@dataclass(frozen=True, kw_only=True)
class CheckedMethod:
    """One method: what it declares, what was measured in each world, and the score it keeps at each token of a fixed
    length; or, with nothing measured, why it could not be checked."""

    name: str
    method: Redistributor
    measured: tuple[properties.Measured, ...] = ()
    shares: tuple[float, ...] = ()
    why_not: str = ""

    @property
    def broken(self) -> list[str]:
        """What is declared and does not hold."""
        return properties.broken(self.method, self.measured) if self.measured else []

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.why_not:
            return "not checked"
        return f"FAIL: {', '.join(self.broken)}" if self.broken else "pass"


def checked(name: str, make: Callable[[], Redistributor], sizes: Sizes) -> CheckedMethod:
    """Measure one method in every world; a new instance for each, as some learn."""
    measured, shares = [], []
    try:
        for seed in range(sizes.worlds):
            worlds = sizes.made(seed)
            measured.append(properties.measured_in(worlds, make))
            shares.append(properties.score_shares(worlds.fixed, make()).numpy())
    except Unanswerable as reason:
        return CheckedMethod(name=name, method=make(), why_not=str(reason))
    mean: list[float] = np.mean(shares, axis=0).tolist()
    return CheckedMethod(name=name, method=make(), measured=tuple(measured), shares=tuple(mean))


def method_table(found: list[CheckedMethod]) -> Table:
    """A row for every method."""
    notes = [f"{one.name} was not checked: {one.why_not}." for one in found if one.why_not]
    notes += [
        f"A declared property (yes) fails beyond {properties.TOLERANCE:g} in any world; errors are the largest, other "
        "figures means over worlds, least: the smallest.",
        "Shaping: GAE advantages equal sparse's for every lambda once the critic is shifted; at gamma 1 the expected "
        "gradient on reward-to-go is the true one and a constant score pushes no length, which is checked too.",
        "Gradient cosine: expected reward-to-go gradient and true gradient. Score left: the share of the true gradient "
        "that reward-to-go keeps at the last token of a fixed length; KL growth: 1 / that share. Push: derivative of "
        "the mean length (tokens) along the gradient where every response scores +1 or -1.",
        "Scores are drawn for every text by itself, so no token means anything alone: the hardest case for a method "
        "that attributes scores to tokens.",
    ]
    return Table(title="declared properties", columns=COLUMNS, rows=tuple(map(_row, found)), notes=tuple(notes))


def _row(one: CheckedMethod) -> tuple[Value, ...]:
    method = one.method
    said = ["yes" if value else "no" for value in (method.conserving, method.causal, properties.shaping(method))]
    if not one.measured:
        return (one.name, one.verdict, None, said[0], None, said[1], None, said[2], *[None] * 7)
    mean = properties.together(one.measured)
    return (
        *(one.name, one.verdict, mean.sum_error, said[0], mean.lookahead, said[1], mean.shaping_error, said[2]),
        *(mean.cosine, min(world.cosine for world in one.measured), mean.cosine_blind, mean.last_share, mean.kl_growth),
        *(mean.push_up, mean.push_down),
    )


def identity_table(found: list[claims.Identity]) -> Table:
    """A row for every claim."""
    rows = tuple((one.claim, one.expected, one.found, "pass" if one.holds else "FAIL") for one in found)
    return Table(title="claims about credit", columns=("claim", "expected", "found", "verdict"), rows=rows)


@figures.style()
def draw(found: list[CheckedMethod]) -> Figure:
    """The counterexample over beta, the KL coefficient's growth over tokens, the length push of every method."""
    measured = [one for one in found if one.measured]
    figure = figures.grid(3, columns=3)
    figure.set_figheight(max(figure.get_figheight(), 1.2 + 0.2 * len(measured)))  # a line of text a method
    bias, growth, pushes = figure.axes
    _draw_bias(bias)
    _draw_growth(growth, measured)
    _draw_pushes(pushes, measured)
    figures.legend(figure, growth, "methods, in the second and third panel")
    return figure


def _draw_bias(axes: Axes) -> None:
    threshold, world = float(claims.PUBLISHED), claims.counterexample()
    betas = (0.0, threshold - 1e-3, threshold + 1e-3, 1.0)
    for word, (name, *_) in claims.WORDS.items():
        row = world.responses.index((1, word))
        credits = [claims.counterexample_credit(world, beta) for beta in betas]
        to_go = [float(properties.reward_to_go(world, credit)[row, 1]) for credit in credits]
        axes.plot(betas, to_go, label=f"reward-to-go of {name}", color=("#0072B2", "#E69F00")[word - 1], linewidth=1)
    axes.plot(betas, [claims.fixed_point(beta) for beta in betas], color="black", label="true score where PPO ends")
    axes.axvline(threshold, color="0.6", linewidth=0.6)
    axes.set_title("counterexample: a is worth 1, b 0.9", loc="left")
    axes.set_xlabel(f"beta (line: {claims.PUBLISHED})")
    axes.legend(frameon=False, loc="lower left")


def _draw_growth(axes: Axes, found: list[CheckedMethod]) -> None:
    styles = figures.line_styles([one.name for one in found])
    for place, one in enumerate(found):
        colour, dash = styles[one.name]
        # Beyond a share of nothing, the gradient points away from the true one and no coefficient describes it.
        growth = [1 / share if share > 0 else np.nan for share in one.shares]
        width = 3.5 - 2.7 * place / len(found)  # so that equal lines are all seen
        axes.plot(range(1, len(growth) + 1), growth, color=colour, linestyle=dash, linewidth=width, label=one.name)
    axes.set_title("effective KL coefficient / kl_coef", loc="left")
    axes.set_xlabel("token of a response of fixed length")
    axes.set_xticks(range(1, 1 + max((len(one.shares) for one in found), default=1)))


def _draw_pushes(axes: Axes, found: list[CheckedMethod]) -> None:
    styles = figures.line_styles([one.name for one in found])
    for place, one in enumerate(found):
        mean = properties.together(one.measured)
        for offset, push, filled in ((-0.2, mean.push_up, True), (0.2, mean.push_down, False)):
            colour = styles[one.name][0]
            axes.barh(place + offset, push, height=0.36, color=colour if filled else "none", edgecolor=colour)
    axes.axvline(0, color="0.6", linewidth=0.6)
    axes.set_yticks(range(len(found)), labels=[one.name for one in found])
    axes.invert_yaxis()
    axes.set_title("length push at score +1 (full) and -1 (hollow)", loc="left")
    axes.set_xlabel("slope of the mean length (tokens)")


def run(methods: Methods, sizes: Sizes, out: Path, console: Console) -> bool:
    """Check the methods, write and show the tables and the figure; whether everything declared and claimed holds."""
    found = [checked(name, make, sizes) for name, make in tqdm(methods.items(), desc="methods", disable=None)]
    stated = claims.identities(sizes.made(0))
    publish(identity_table(stated), {}, out, console, name="claims")
    publish(method_table(found), {"theory": draw(found)}, out, console)
    gradients = estimator_gradients(methods, worlds=sizes.worlds, words=sizes.words)
    publish(bias_table(gradients), {}, out, console, name="estimator_bias")
    publish(noise_table(gradients), {}, out, console, name="estimator_noise")
    failed = [f"{one.name} declares what does not hold ({', '.join(one.broken)})" for one in found if one.broken]
    failed += [f"claim does not hold: {one.claim}" for one in stated if not one.holds]
    for problem in failed:
        console.print(problem, style="red", markup=False, highlight=False)
    return not failed
