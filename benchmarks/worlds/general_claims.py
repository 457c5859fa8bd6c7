"""Claims about credit in general, checked by enumeration on made-up credit.

Some come with a counterpart that must not hold, so that a check that always passes would be noticed.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from benchmarks.worlds import declared_properties as properties
from benchmarks.worlds.declared_properties import LAMS, TOLERANCE
from benchmarks.worlds.tabular import TokenScores, World, probabilities, random_world
from redistributors import Sparse, Uniform
from redistributors.parts.credit import normalised, spread
from rlhf_core.returns import discounted_returns

GAMMA = 0.9
WORDS = {1: ("a", Fraction(1), Fraction(1, 10)), 2: ("b", Fraction(9, 10), Fraction(9, 10))}
"""The two-token counterexample's second words: name, what the response earns, credit on that word."""
PUBLISHED = Fraction(10, 81)


@dataclass(frozen=True)
class Identity:
    """A claim, what enumeration finds, and whether that is as claimed."""

    claim: str
    expected: str
    found: str
    holds: bool


def counterexample() -> World:
    """Two tokens, of which the second alone decides the score; the totals prefer a."""
    world = random_world(words=2, shortest=2, longest=2, seed=0)
    earned = torch.tensor([float(WORDS[row[1]][1]) for row in world.responses], dtype=torch.float64)
    return replace(world, raw_scores=earned, centre=0.0, scale=1.0, logits=torch.zeros_like(world.logits))


def counterexample_credit(world: World, beta: float) -> TokenScores:
    """Equation 8 with the counterexample's credit."""
    last = [float(WORDS[row[1]][2]) for row in world.responses]
    credit = torch.tensor([[1 - share, share] for share in last], dtype=torch.float64)
    return spread(world.scores, credit, world.sequences.response_mask, beta=beta).double()


def exact_threshold() -> Fraction:
    """The beta at which reward-to-go at the second token is the same for both words, in fractions.

    It is linear in beta: β·credit·score + (1 − β)·score.
    """

    def lead(beta: int) -> Fraction:
        a, b = (beta * share * earned + (1 - beta) * earned for _, earned, share in WORDS.values())
        return a - b

    return lead(0) / (lead(0) - lead(1))


def found_threshold() -> float:
    """The same by bisection on what the engine computes."""
    world = counterexample()
    a, b = (world.responses.index((1, word)) for word in WORDS)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        to_go = properties.reward_to_go(world, counterexample_credit(world, middle))[:, 1]
        low, high = (middle, high) if to_go[a] > to_go[b] else (low, middle)
    return (low + high) / 2


def fixed_point(beta: float, *, steps: int = 60) -> float:
    """The true expected score where gradient steps of unit length on expected reward-to-go end up."""
    world = counterexample()
    to_go = properties.reward_to_go(world, counterexample_credit(world, beta))
    for _ in range(steps):
        gradient = world.policy_gradient(to_go)
        world = replace(world, logits=world.logits + gradient / gradient.norm())
    return float((probabilities(world, world.logits) * world.scores).sum())


def identities(worlds: properties.Worlds) -> list[Identity]:
    """All of them, in worlds of one seed."""
    return [
        *_return_equivalence(worlds.open),
        *_counterexample(),
        *_shaping(worlds.open),
        *_lengths(worlds.canary.rewarded(1.0)),
        _kl_growth(worlds.fixed),
    ]


def random_credit(world: World) -> TokenScores:
    """Non-negative credit that sums to 1 over each response, another for every response."""
    generator = torch.Generator().manual_seed(world.seed + 1)
    mask = world.sequences.response_mask
    return normalised(torch.rand(mask.shape, generator=generator, dtype=torch.float64), mask)


def _return_equivalence(world: World) -> list[Identity]:
    mask, credit = world.sequences.response_mask, random_credit(world)
    true = world.true_gradient(world.scores)
    gaps, cosines = [], []
    for beta in (0.0, 0.5, 0.8, 1.0):
        token_scores = spread(world.scores, credit, mask, beta=beta).double()
        whole = token_scores.sum(1, keepdim=True).expand(mask.shape)
        gaps.append(float((world.policy_gradient(whole) - true).abs().max()))
        cosines.append(properties.cosine(world.policy_gradient(properties.reward_to_go(world, token_scores)), true))
    discounted = discounted_returns(spread(world.scores, credit, mask, beta=1.0).double(), mask, gamma=GAMMA)[:, 0]
    kept = GAMMA ** (mask.sum(1) - 1) * world.scores
    return [
        _small("gradient on whole returns, any beta: error", max(gaps)),
        _equal("reward-to-go, beta 0: gradient cosine", cosines[0], 1.0),
        Identity("reward-to-go, beta 1: gradient cosine", "< 1", f"{cosines[-1]:.4f}", cosines[-1] < 1 - TOLERANCE),
        _large(f"gamma {GAMMA}, beta 1: returns change by", float((discounted - kept).abs().max())),
    ]


def _counterexample() -> list[Identity]:
    exact = exact_threshold()
    below, above = (fixed_point(float(exact) + step) for step in (-0.01, 0.01))
    return [
        Identity("counterexample: worse word wins from beta", str(PUBLISHED), str(exact), exact == PUBLISHED),
        _equal("the same beta, by bisection", found_threshold(), float(PUBLISHED)),
        _equal("0.01 below it: true score where PPO ends", below, 1.0, tolerance=1e-3),
        _equal("0.01 above it: true score where PPO ends", above, 0.9, tolerance=1e-3),
    ]


def _shaping(world: World) -> list[Identity]:
    sparse = Sparse()(world.rollout({})).double()
    errors = [
        properties.shaping_error(world, sparse + shaping_terms(world, discount), gamma=gamma)
        for gamma, discount in ((1.0, 1.0), (GAMMA, GAMMA), (GAMMA, 1.0))
    ]
    return [
        _small("Φ(s′) − Φ(s), gamma 1: GAE changes by", errors[0]),
        _small(f"γΦ(s′) − Φ(s), gamma {GAMMA}: GAE changes by", errors[1]),
        _large(f"Φ(s′) − Φ(s), gamma {GAMMA}: GAE changes by", errors[2]),
    ]


def shaping_terms(world: World, gamma: float) -> TokenScores:
    """γ Φ(s_{t+1}) − Φ(s_t), Φ a number drawn for every state and 0 at the end."""
    mask = world.sequences.response_mask
    generator = torch.Generator().manual_seed(world.seed + 2)
    potential = torch.randn(len(world.logits), generator=generator, dtype=torch.float64)[world.states]
    potential = torch.where(mask, potential, 0)
    return torch.where(mask, gamma * torch.nn.functional.pad(potential[:, 1:], (0, 1)) - potential, 0)


def _lengths(canary: World) -> list[Identity]:
    sparse, uniform = (method(canary.rollout({})).double() for method in (Sparse(), Uniform()))
    blind = properties.push(canary, properties.blind_advantages(canary, sparse, lam=0.95))
    pushes = properties.push(canary, properties.reward_to_go(canary, uniform))
    informed = [properties.push(canary, properties.informed_advantages(canary, sparse, lam=lam)) for lam in LAMS]
    return [
        _small("score +1 for all: true gradient", float(canary.true_gradient(canary.scores).abs().max())),
        _small("sparse, exact critic, any λ: length push", max(map(abs, informed))),
        _signed("sparse, λ 0.95, critic 0: length push", blind, -1),
        _signed("uniform: length push", pushes, 1),
    ]


def _kl_growth(world: World) -> Identity:
    """T / (T − t + 1) at every token of a fixed length under uniform credit."""
    longest = world.longest
    expected = torch.tensor([longest / (longest - t + 1) for t in range(1, longest + 1)], dtype=torch.float64)
    growth = 1 / properties.score_shares(world, Uniform())
    return _small("uniform: KL growth less T / (T − t + 1)", float((growth - expected).abs().max()))


def _small(claim: str, error: float) -> Identity:
    return Identity(claim, "0", f"{error:.1e}", error <= TOLERANCE)


def _large(claim: str, difference: float) -> Identity:
    return Identity(claim, "not 0", f"{difference:.2g}", difference > 1e-3)


def _equal(claim: str, found: float, expected: float, tolerance: float = TOLERANCE) -> Identity:
    return Identity(claim, f"{expected:.4f}", f"{found:.4f}", abs(found - expected) <= tolerance)


def _signed(claim: str, found: float, sign: int) -> Identity:
    return Identity(claim, "> 0" if sign > 0 else "< 0", f"{found:+.2g}", sign * found > 1e-4)
