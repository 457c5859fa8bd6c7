"""Win rate, position bias, win rate at equal length, and one sentence, from pairwise verdicts.

Shares lie in [0, 1] and are those of the first of two checkpoints; a tie is half a win. Prompts are the sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from benchmarks.reporting.statistics import LEVEL, Array
from rlhf_core.names import counted

FEWEST_PAIRS = 10
"""Below so many pairs no regression is fitted."""
NOTES = (
    "Brackets: 95 % intervals. Win rate: Wilson's, which is wider than necessary where there are ties. At equal "
    "length: percentile bootstrap over prompts, combined with the profile likelihood. Each checkpoint gave one "
    "response per prompt; the intervals do not cover other training runs.",
    "At equal length: logistic regression of the outcome on tanh(difference in characters / its standard deviation), "
    "at difference 0. This is AlpacaEval 2.0's length control without its term for an instruction's difficulty, and "
    "with Jeffreys' prior in place of a cross-validated penalty.",
    "A pair decided differently in the two orders is a tie; so is one of equal texts, which is not judged. Pairs with "
    "an unreadable answer are left out.",
)


@dataclass(frozen=True, kw_only=True)
class RateEstimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def includes(self, share: float) -> bool:
        """Whether the interval holds ``share``."""
        return self.low <= share <= self.high


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """What was decided about two responses to one prompt, and how long they are."""

    decisions: tuple[float, ...]
    """1.0 (the response *shown* first is better), 0.5 or 0.0: with the first checkpoint's response shown first, then,
    where order was varied, with the second's. Empty if both said the same, which is a tie without being judged."""
    first_length: int
    """Characters of the first checkpoint's response."""
    second_length: int
    """Characters of the second's."""

    @property
    def outcome(self) -> float:
        """1.0 (the first checkpoint's response is better), 0.5 or 0.0; orders that disagree are a tie."""
        favours = {decision if order == 0 else 1 - decision for order, decision in enumerate(self.decisions)}
        return favours.pop() if len(favours) == 1 else 0.5


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """What a judge did that was shown every pair in both orders; all counts are of pairs."""

    pairs: int
    """Pairs judged in both orders."""
    first_share: float
    """Share of verdicts for the response shown first, ties half; 0.5 for a judge that does not mind, NaN without
    pairs."""
    disagreements: int
    """Pairs decided differently in the two orders."""
    always_first: int
    """Of those, pairs in which the response shown first won both times."""
    always_second: int
    """Of those, pairs in which the response shown second won both times."""


@dataclass(frozen=True, kw_only=True)
class WinRates:
    """Everything the report says about the verdicts; ``outcomes`` of 1, 0.5 and 0 are wins, ties and losses."""

    wins: int
    ties: int
    losses: int
    win_rate: RateEstimate
    """Wilson score interval."""
    standard_error: float
    """Of the win rate: standard deviation of outcomes / √n, what AlpacaEval prints after ±; NaN where all
    outcomes agree, which says nothing of their spread."""
    length_controlled: RateEstimate
    """Win rate at equal length, with a bootstrap interval; NaN where ``undefined`` says why."""
    undefined: str
    """Why there is no length-controlled win rate; empty if there is one."""
    first_length: float
    """Mean characters of the first checkpoint's responses."""
    second_length: float
    """Mean characters of the second's."""
    longer: int
    """Pairs in which the first checkpoint's response is longer."""
    shorter: int
    """Pairs in which it is shorter."""
    position: PositionBias

    @property
    def pairs(self) -> int:
        """Pairs that count."""
        return self.wins + self.ties + self.losses


def decision(probability: float) -> float:
    """1.0 above a half, 0.0 below, 0.5 at exactly a half."""
    return (1.0 + float(np.sign(probability - 0.5))) / 2


def win_rates(pairs: Sequence[JudgedPair], *, resamples: int) -> WinRates:
    """Reduce verdicts to rates; ``resamples`` are those of the length-controlled rate's bootstrap.

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise ValueError("win_rates: there is not one pair with a verdict")
    outcomes = np.array([pair.outcome for pair in pairs])
    differences = np.array([float(pair.first_length - pair.second_length) for pair in pairs])
    undefined = why_not_controlled(differences)
    nothing = RateEstimate(value=math.nan, low=math.nan, high=math.nan)
    return WinRates(
        wins=int((outcomes == 1).sum()),
        ties=int((outcomes == 0.5).sum()),
        losses=int((outcomes == 0).sum()),
        win_rate=wilson(outcomes),
        standard_error=float(outcomes.std(ddof=1) / math.sqrt(len(pairs))) if np.ptp(outcomes) else math.nan,
        length_controlled=nothing if undefined else length_controlled(outcomes, differences, resamples=resamples),
        undefined=undefined,
        first_length=float(np.mean([pair.first_length for pair in pairs])),
        second_length=float(np.mean([pair.second_length for pair in pairs])),
        longer=int((differences > 0).sum()),
        shorter=int((differences < 0).sum()),
        position=position_bias(pairs),
    )


def wilson(outcomes: Array) -> RateEstimate:
    """Mean of outcomes in [0, 1] with Wilson's score interval (1927, J. Am. Stat. Assoc. 22:209).

    Unlike a bootstrap, it has no width 0 where all outcomes agree. With ties it is wider than necessary: half wins vary
    less than the p (1 - p) it assumes.
    """
    n, p = len(outcomes), float(outcomes.mean())
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return RateEstimate(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half))


def position_bias(pairs: Sequence[JudgedPair]) -> PositionBias:
    """How far verdicts depend on which response was shown first, over the pairs judged in both orders."""
    both = np.array([pair.decisions for pair in pairs if len(pair.decisions) == 2]).reshape(-1, 2)
    return PositionBias(
        pairs=len(both),
        first_share=float(both.mean()) if len(both) else math.nan,
        disagreements=int((both.sum(1) != 1).sum()),
        always_first=int((both == 1).all(1).sum()),
        always_second=int((both == 0).all(1).sum()),
    )


def why_not_controlled(differences: Array) -> str:
    """Why no win rate at equal length can be had from these length differences (first minus second); else empty."""
    if len(differences) < FEWEST_PAIRS:
        return f"{counted(len(differences), 'pair')}, fewer than {FEWEST_PAIRS}"
    if np.ptp(differences) == 0:
        return f"every pair differs in length by {differences[0]:+z.0f} characters"
    if differences.min() > 0 or differences.max() < 0:
        return f"the responses of the {'first' if differences.min() > 0 else 'second'} are longer in every pair"
    return ""


def length_controlled(outcomes: Array, differences: Array, *, resamples: int, seed: int = 0) -> RateEstimate:
    """The win rate at equal length: logit P(win) = a + b · tanh(d / s), evaluated at d = 0, which is σ(a).

    d is the length of the first response minus the second's, s the standard deviation of d over all pairs: the length
    term of AlpacaEval 2.0 (Dubois et al. 2024, arXiv:2404.04475). Two things differ from theirs. Their term for how
    hard an instruction is needs weights they fitted on a leaderboard of models, and is left out. Where theirs shrinks
    by a cross-validated L1 penalty, the fit here is :func:`fitted`'s. The interval holds two: a percentile bootstrap
    over prompts, s held fixed (a resample in which all differences are equal is drawn again), which allows for outcomes
    that follow another curve, and :func:`profiled`'s, which does not shrink to nothing where few outcomes or none
    differ from the others, as a bootstrap does.

    Raises:
        ValueError: differences of which :func:`why_not_controlled` complains.
    """
    if reason := why_not_controlled(differences):
        raise ValueError(f"length_controlled: {reason}")
    standardised = np.tanh(differences / differences.std(ddof=1))
    generator = np.random.default_rng(seed)
    drawn: list[float] = []
    while len(drawn) < resamples:
        some = generator.integers(0, len(outcomes), len(outcomes))
        if np.ptp(differences[some]) > 0:
            drawn.append(float(special.expit(fitted(outcomes[some], standardised[some])[0])))
    resampled = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    likely = special.expit(profiled(outcomes, standardised))
    value = float(special.expit(fitted(outcomes, standardised)[0]))
    return RateEstimate(value=value, low=float(min(resampled[0], likely[0])), high=float(max(resampled[1], likely[1])))


def fitted(outcomes: Array, x: Array) -> tuple[float, float]:
    """Intercept and slope of a logistic regression of outcomes in [0, 1] on ``x``, under Jeffreys' prior.

    The fit maximises log-likelihood + ½ log det I(a, b), I the Fisher information (Firth 1993, Biometrika 80:27).
    Without the prior there is no finite maximum where a judge always prefers the longer response. This one has no
    strength to be chosen, swapping the checkpoints turns a into -a, and where ``x`` has two values it adds half a win
    and half a loss to either.

    Raises:
        RuntimeError: the optimiser did not reach a maximum.
    """

    found = optimize.minimize(_loss, np.zeros(2), args=(outcomes, x), jac=True, method="BFGS")
    _require_maximum(found, len(outcomes))
    return float(found.x[0]), float(found.x[1])


def profiled(outcomes: Array, x: Array) -> tuple[float, float]:
    """The intercepts between which twice the penalised log-likelihood of :func:`fitted`, at its best slope, stays
    within χ²(0.95, 1) of its maximum (Heinze and Schemper 2002, Statistics in Medicine 21:2409)."""
    intercept, slope = fitted(outcomes, x)
    best, slopes = _loss(np.array([intercept, slope]), outcomes, x)[0], {"at": slope}

    def excess(at: float) -> float:
        def of_slope(b: Array) -> tuple[float, Array]:
            value, gradient = _loss(np.array([at, b[0]]), outcomes, x)
            return value, gradient[1:]

        found = optimize.minimize(of_slope, [slopes["at"]], jac=True, method="BFGS")
        _require_maximum(found, len(outcomes))
        slopes["at"] = float(found.x[0])  # the next one begins there
        return 2 * (float(found.fun) - best) - float(stats.chi2.ppf(LEVEL, 1))

    def edge(direction: int) -> float:
        slopes["at"], far = slope, 1.0
        while excess(intercept + direction * far) < 0:
            far *= 2
        return float(optimize.brentq(lambda step: excess(intercept + direction * step), 0, far, xtol=1e-4))

    return intercept - edge(-1), intercept + edge(1)


def _loss(coefficients: Array, outcomes: Array, x: Array) -> tuple[float, Array]:
    """Minus the penalised log-likelihood, and its gradient."""
    logits = coefficients[0] + coefficients[1] * x
    p = special.expit(logits)
    weights = p * special.expit(-logits)
    w0, w1, w2 = weights.sum(), weights @ x, weights @ x**2
    determinant = w0 * (weights @ (x - w1 / w0) ** 2)
    likelihood = outcomes @ special.log_expit(logits) + (1 - outcomes) @ special.log_expit(-logits)
    leverage = weights * (w2 - 2 * x * w1 + x**2 * w0) / determinant
    residuals = outcomes - p + leverage * (0.5 - p)
    return -float(likelihood + 0.5 * np.log(determinant)), -np.array([residuals.sum(), residuals @ x])


def _require_maximum(found: optimize.OptimizeResult, outcomes: int) -> None:
    if not np.abs(found.jac).max() < 1e-3 * outcomes:
        raise RuntimeError(f"logistic regression of {outcomes} outcomes on length: {found.message}")


def percent(share: float) -> str:
    """ "58.3 %"; "–" where undefined."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def shown_share(estimate: RateEstimate) -> str:
    """ "58.3 % [45.7, 69.9]"; "–" where undefined."""
    if math.isnan(estimate.value):
        return "–"
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def rows(rates: WinRates, first: str, second: str) -> list[tuple[str, str]]:
    """Title and text of every line of the table that the rates fill."""
    position = rates.position
    lines = [
        (f"{first} better / ties / {second} better", f"{rates.wins} / {rates.ties} / {rates.losses}"),
        (f"win rate of {first}, ties half", shown_share(rates.win_rate)),
        ("its standard error, as AlpacaEval's", percent(rates.standard_error)),
        (f"win rate of {first} at equal length", shown_share(rates.length_controlled)),
        (f"mean characters, {first} / {second}", f"{rates.first_length:.1f} / {rates.second_length:.1f}"),
        (f"{first} longer / {second} longer", f"{rates.longer} / {rates.shorter}"),
    ]
    if position.pairs:
        lines += [
            ("response shown first preferred", f"{percent(position.first_share)} of {2 * position.pairs} verdicts"),
            ("orders disagree, counted as ties", f"{position.disagreements} of {counted(position.pairs, 'pair')}"),
            ("of these, first / second place won twice", f"{position.always_first} / {position.always_second}"),
        ]
    return lines


def verdict(rates: WinRates, first: str, second: str, judge: str) -> str:
    """One honest sentence: a winner only where the interval of the win rate leaves out 50 %, and beside it what
    remains at equal length."""
    ahead = rates.win_rate.value >= 0.5
    winner, loser = (first, second) if ahead else (second, first)
    raw, controlled = (one if ahead else _swapped(one) for one in (rates.win_rate, rates.length_controlled))
    asked = f"{shown_share(raw)} of {counted(rates.pairs, 'prompt')} by {judge}, ties half"
    said = f"{winner} is preferred over {loser} in {asked}"
    if rates.win_rate.includes(0.5):
        said = f"No winner: {said}, and the interval includes 50 %"
    if rates.undefined:
        return f"{said}; at equal length nothing can be said: {rates.undefined}."
    if controlled.includes(0.5):
        remains = ", which includes 50 %: without the difference in length no preference is shown"
    elif controlled.value < 0.5:
        remains = f", which is for {loser}"
    else:
        remains = ""
    return f"{said}; at equal length in {shown_share(controlled)}{remains}."


def _swapped(estimate: RateEstimate) -> RateEstimate:
    return RateEstimate(value=1 - estimate.value, low=1 - estimate.high, high=1 - estimate.low)
