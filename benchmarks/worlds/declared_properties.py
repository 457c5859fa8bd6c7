"""Check a redistributor's declarations on every response of a tabular world.

A method that is causal and conserving is potential-based shaping of the sparse reward: its credit so far is a function
of the state. So it must also leave GAE advantages alone once the critic is shifted, and with them the policy gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.worlds.tabular import TokenScores, World, probabilities, random_world, spread_within
from benchmarks.worlds.tabular_evidence import evidence_for
from redistributors import Sparse
from redistributors.trial_rollouts import part_of
from rlhf_core.returns import discounted_returns, generalized_advantages
from rlhf_core.types import Learns, Redistributor, Rollout

TOLERANCE = 1e-6
"""Largest error that rounding explains; methods may compute in float32."""
LAMS = (0.0, 0.5, 0.95, 1.0)
EARLIER, ROWS = 4, 64
"""Rollouts that a method which learns has seen, and their responses."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements in one world, or their average (for errors, the maximum) over several."""

    sum_error: float
    """Largest |Σ_t token score − score|."""
    lookahead: float
    """Largest change of a token's score when only later tokens change."""
    shaping_error: float
    """Largest difference of a GAE advantage to sparse's, over λ, after the critic was shifted by the potential."""
    cosine: float
    """Cosine of the expected reward-to-go gradient (λ = 1) with the true gradient."""
    cosine_blind: float
    """The same at λ = 0.95 with a critic that has learnt nothing (0). With an exact one λ changes no expectation."""
    last_share: float
    """Of the score's true gradient at the last token of a fixed length, the share that reward-to-go keeps."""
    push_up: float
    """Derivative of the mean length (tokens) along the expected reward-to-go gradient, every response worth +1."""
    push_down: float
    """The same where every response is worth −1."""

    @property
    def kl_growth(self) -> float:
        """How many times the KL coefficient weighs at the last token, whose penalty keeps its size; NaN where nothing
        of the score is left, or its opposite."""
        return 1 / self.last_share if self.last_share > 0 else nan


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """The three kinds of world that the figures are taken in."""

    open: World
    """Random scores, any length up to the longest, one token included."""
    fixed: World
    """Random scores, one length."""
    canary: World
    """A constant score, any length; its score is set by who uses it."""


def make_worlds(seed: int, *, words: int, longest: int) -> Worlds:
    """Worlds of one seed."""
    return Worlds(
        open=random_world(words=words, shortest=0, longest=longest, seed=seed),
        fixed=random_world(words=words, shortest=longest, longest=longest, seed=seed),
        canary=random_world(words=words, shortest=1, longest=longest, seed=seed),
    )


def shaping(method: Redistributor) -> bool:
    """Whether the method declares that it is shaping; a method that declares nothing is not."""
    return bool(getattr(method, "shaping", False))


def token_scores(world: World, method: Redistributor) -> TokenScores:
    """The method's token scores of every response, in float64. One that learns has observed earlier rollouts, drawn
    from the same world.

    Raises:
        Unanswerable: it needs evidence that a table cannot give.
    """
    rollout = world.rollout(evidence_for(world, method))
    if isinstance(method, Learns):
        for number in range(EARLIER):
            method.observe(drawn(world, rollout, number))
    return method(rollout).double()


def drawn(world: World, rollout: Rollout, number: int) -> Rollout:
    """``ROWS`` responses drawn by the policy, measured as in ``rollout``."""
    generator = torch.Generator().manual_seed(number)
    chosen = torch.multinomial(probabilities(world, world.logits), ROWS, replacement=True, generator=generator)
    return part_of(rollout, chosen.tolist(), int(rollout.sequences.response_lengths[chosen].max()))


def measured_in(worlds: Worlds, make: Callable[[], Redistributor]) -> Measured:
    """Everything, in the worlds of one seed, each with an instance of its own, as some learn; raises as
    :func:`token_scores`."""
    world, method = worlds.open, make()
    credit, mask = token_scores(world, method), world.sequences.response_mask
    true, gamma = world.true_gradient(world.scores), discount(method)
    return Measured(
        sum_error=float((credit.sum(1) - world.scores).abs().max()),
        lookahead=spread_within(world.nodes[mask], credit[mask]),
        shaping_error=shaping_error(world, credit, gamma=gamma),
        cosine=cosine(world.policy_gradient(reward_to_go(world, credit, gamma)), true),
        cosine_blind=cosine(world.policy_gradient(blind_advantages(world, credit, gamma, lam=0.95)), true),
        last_share=float(score_shares(worlds.fixed, make())[-1]),
        push_up=length_push(worlds.canary.rewarded(1.0), make()),
        push_down=length_push(worlds.canary.rewarded(-1.0), make()),
    )


def discount(method: Redistributor) -> float:
    """The gamma that a method is made for, else 1."""
    return float(getattr(method, "gamma", 1.0))


def reward_to_go(world: World, credit: TokenScores, gamma: float = 1.0) -> TokenScores:
    """What is still to come from each token on."""
    return discounted_returns(credit, world.sequences.response_mask, gamma=gamma)


def blind_advantages(world: World, credit: TokenScores, gamma: float = 1.0, *, lam: float) -> TokenScores:
    """GAE with a critic that says 0 of every state."""
    return generalized_advantages(credit, 0 * credit, world.sequences.response_mask, gamma=gamma, lam=lam)


def informed_advantages(world: World, credit: TokenScores, *, lam: float) -> TokenScores:
    """GAE with the critic that knows the expected reward-to-go of every state."""
    values = world.state_means(reward_to_go(world, credit))
    return generalized_advantages(credit, values, world.sequences.response_mask, gamma=1.0, lam=lam)


def shaping_error(world: World, credit: TokenScores, *, gamma: float) -> float:
    """Largest |A(credit, V − Φ) − A(sparse, V)| over responses, tokens and λ, V any critic of the state.

    Where r'_t = r_t + γ Φ(s_{t+1}) − Φ(s_t) with Φ = 0 at the end, Φ(s_t) is the difference of the two discounted
    rewards-to-go (Ng, Harada and Russell 1999; Wiewiora 2003 on the shifted critic). Where that difference depends on
    more than the state, its mean stands in, and the error says by how much it is not a potential.
    """
    mask, sparse = world.sequences.response_mask, Sparse()(world.rollout({})).double()
    gap = discounted_returns(sparse, mask, gamma=gamma) - discounted_returns(credit, mask, gamma=gamma)
    potential = world.state_means(gap)
    critic = torch.randn(len(world.logits), generator=torch.Generator().manual_seed(world.seed), dtype=torch.float64)
    values = torch.where(mask, critic[world.states], 0)
    errors = []
    for lam in LAMS:
        shaped = generalized_advantages(credit, values - potential, mask, gamma=gamma, lam=lam)
        plain = generalized_advantages(sparse, values, mask, gamma=gamma, lam=lam)
        errors.append(float((shaped - plain).abs()[mask].max()))
    return max(errors)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two gradients, flattened."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def score_shares(world: World, method: Redistributor) -> Float[Tensor, " response"]:
    """At each token of a fixed length, the share of the score's true gradient that reward-to-go keeps.

    ⟨ĝ_t, g_t⟩ / ⟨g_t, g_t⟩ over the logits of that token's states. The KL penalty is paid where it arises, so its
    gradient keeps its size and its coefficient weighs 1 / share times as much: T / (T − t + 1) for uniform credit.
    """
    found = world.policy_gradient(reward_to_go(world, token_scores(world, method), discount(method)))
    true = world.true_gradient(world.scores)
    shares = []
    for states in world.states.T:
        here = states.unique()
        shares.append((found[here] * true[here]).sum() / true[here].square().sum())
    return torch.stack(shares)


def length_push(world: World, method: Redistributor) -> float:
    """⟨∇ E[T], ĝ⟩: how fast the mean length moves along the expected reward-to-go gradient."""
    return push(world, reward_to_go(world, token_scores(world, method), discount(method)))


def push(world: World, advantages: TokenScores) -> float:
    """The same for any advantages."""
    lengths = world.sequences.response_lengths.double()
    return float((world.true_gradient(lengths) * world.policy_gradient(advantages)).sum())


def together(found: Sequence[Measured]) -> Measured:
    """Errors at their worst, everything else on average."""
    worst = ("sum_error", "lookahead", "shaping_error")
    columns: Mapping[str, list[float]] = {f.name: [getattr(one, f.name) for one in found] for f in fields(Measured)}
    return Measured(**{n: max(v) if n in worst else sum(v) / len(v) for n, v in columns.items()})


def broken(method: Redistributor, found: Sequence[Measured]) -> list[str]:
    """What does not hold in some world of what the method declares, and of what follows from shaping at gamma 1."""
    worst, follows = together(found), shaping(method) and discount(method) == 1
    claims = {
        "conserving": (method.conserving, worst.sum_error),
        "causal": (method.causal, worst.lookahead),
        "shaping": (shaping(method), worst.shaping_error),
        "gradient": (follows, max(1 - one.cosine for one in found)),
        "length": (follows, max(abs(push) for one in found for push in (one.push_up, one.push_down))),
    }
    return [name for name, (claimed, error) in claims.items() if claimed and not error <= TOLERANCE]
