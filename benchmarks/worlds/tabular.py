"""A world small enough to enumerate: every response of a short alphabet, and a policy that is a table over prefixes.

Everything is float64 and exact: expectations are sums over all responses, gradients are those of the table's logits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.evidence import EvidenceRequest
from rlhf_core.kl import kl_estimate
from rlhf_core.types import Rollout, Sequences

EOS, PROMPT = 0, 1
Tokens = tuple[int, ...]
ScoreTable = Callable[[Tokens], float]
TokenScores = Float[Tensor, "batch response"]


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """All responses, and the table of the policy that writes them.

    Tokens are EOS (0) and the words 1 to ``words``; EOS may come after ``shortest`` tokens, and a response ends with
    it or after ``longest``. A state is a prefix without EOS. ``table`` scores any string of tokens, finished or not
    (what evidence is measured on), ``raw_scores`` (batch,) are what the responses earn. ``scores`` are
    (raw − ``centre``) · ``scale``.
    """

    words: int
    shortest: int
    longest: int
    seed: int
    logits: Float[Tensor, "state token"]
    ref_logits: Float[Tensor, "state token"]
    table: ScoreTable
    raw_scores: Float[Tensor, " batch"]
    centre: float = 0.0
    scale: float = 1.0

    @cached_property
    def responses(self) -> tuple[Tokens, ...]:
        """Every response, once."""
        return tuple(_responses(self.words, self.shortest, self.longest))

    @cached_property
    def sequences(self) -> Sequences:
        """The responses, each after the same prompt of one token."""
        lengths = torch.tensor([len(row) for row in self.responses])
        rows, width = len(lengths), int(lengths.max())
        return Sequences(
            prompt_ids=torch.full((rows, 1), PROMPT),
            prompt_mask=torch.ones(rows, 1, dtype=torch.bool),
            response_ids=_padded(self.responses),
            response_mask=torch.arange(width) < lengths[:, None],
            min_lengths=torch.full((rows,), self.shortest),
            max_lengths=torch.full((rows,), self.longest),
            finished=torch.tensor([row[-1] == EOS for row in self.responses]),
        )

    @cached_property
    def states(self) -> Int[Tensor, "batch response"]:
        """The number of the prefix before each response token, 0 on padding."""
        return _numbered([[row[:t] for t in range(len(row))] for row in self.responses])

    @cached_property
    def nodes(self) -> Int[Tensor, "batch response"]:
        """The number of the prefix up to and with each response token, 0 on padding."""
        return _numbered([[row[: t + 1] for t in range(len(row))] for row in self.responses])

    @property
    def scores(self) -> Float[Tensor, " batch"]:
        """What is redistributed."""
        return (self.raw_scores - self.centre) * self.scale

    def rewarded(self, value: float) -> "World":
        """The same world, every response worth ``value``, and so are continuations; other evidence stays that of the
        table."""
        return replace(self, raw_scores=torch.full_like(self.raw_scores, value), centre=0.0, scale=1.0)

    def rollout(self, evidence: dict[EvidenceRequest, Tensor]) -> Rollout:
        """All responses as one rollout of the policy; values are 0."""
        logprobs, ref_logprobs = (token_logprobs(self, logits) for logits in (self.logits, self.ref_logits))
        return Rollout(
            sequences=self.sequences,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=torch.zeros_like(logprobs),
            kl=kl_estimate(logprobs, ref_logprobs, "k1"),
            raw_scores=self.raw_scores,
            scores=self.scores,
            score_scale=self.scale,
            evidence=evidence,
        )

    def true_gradient(self, rewards: Float[Tensor, " batch"]) -> Float[Tensor, "state token"]:
        """∇ Σ_y π(y) R(y): the gradient of the expected reward, differentiated as it stands."""
        logits = self.logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((probabilities(self, logits) * rewards).sum(), logits)
        return gradient

    def policy_gradient(self, advantages: TokenScores) -> Float[Tensor, "state token"]:
        """Σ_y π(y) Σ_t A_t ∇ log π(y_t | y_<t): what PPO's first step follows in expectation."""
        logits = self.logits.clone().requires_grad_()
        weights = probabilities(self, self.logits)[:, None] * advantages
        (gradient,) = torch.autograd.grad((weights * token_logprobs(self, logits)).sum(), logits)
        return gradient

    def state_means(self, values: TokenScores) -> TokenScores:
        """E[values_t | y_<t] under the policy, in the place of each token: with reward-to-go, the exact critic."""
        mask = self.sequences.response_mask
        weights = torch.where(mask, probabilities(self, self.logits)[:, None], 0)
        totals, masses = (
            torch.zeros(len(self.logits), dtype=torch.float64).index_add(0, self.states[mask], part[mask])
            for part in (weights * values, weights)
        )
        return torch.where(mask, (totals / masses)[self.states], 0)


def random_world(*, words: int, shortest: int, longest: int, seed: int) -> World:
    """Standard normal logits and scores; scores are centred and scaled, so that raw and normalised units differ."""
    table = score_table(seed)
    responses = list(_responses(words, shortest, longest))
    states = len({row[:t] for row in responses for t in range(len(row))})
    drawn = torch.randn(2, states, words + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return World(
        words=words,
        shortest=shortest,
        longest=longest,
        seed=seed,
        logits=drawn[0],
        ref_logits=drawn[1],
        table=table,
        raw_scores=torch.tensor([table(row) for row in responses], dtype=torch.float64),
        centre=0.3,
        scale=0.5,
    )


def score_table(seed: int) -> ScoreTable:
    """A standard normal score for every string of tokens, each drawn for itself: nothing about it is additive."""

    @cache
    def table(tokens: Tokens) -> float:
        return float(generator(seed, "score", *tokens).normal())

    return table


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A stream of its own for every name and list of numbers."""
    return np.random.default_rng([seed, *name.encode(), 0, len(numbers), *numbers])


def _responses(words: int, shortest: int, longest: int, prefix: Tokens = ()) -> Iterator[Tokens]:
    if len(prefix) == longest:
        yield prefix
        return
    if len(prefix) >= shortest:
        yield (*prefix, EOS)
    for word in range(1, words + 1):
        yield from _responses(words, shortest, longest, (*prefix, word))


def _numbered(prefixes: list[list[Tokens]]) -> Int[Tensor, "batch response"]:
    numbers: dict[Tokens, int] = {}
    return _padded([[numbers.setdefault(prefix, len(numbers)) for prefix in row] for row in prefixes])


def _padded(rows: Iterable[Sequence[int]]) -> Int[Tensor, "batch response"]:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def distributions(world: World, logits: Float[Tensor, "state token"]) -> Float[Tensor, "batch response token"]:
    """Log-probabilities of every next token before each response token; EOS is −inf where it is banned."""
    banned = torch.arange(world.states.shape[1]) < world.shortest
    eos = torch.arange(world.words + 1) == EOS
    return logits[world.states].masked_fill(banned[None, :, None] & eos, -torch.inf).log_softmax(-1)


def token_logprobs(world: World, logits: Float[Tensor, "state token"]) -> Float[Tensor, "batch response"]:
    """log π of each response token under ``logits``, 0 on padding."""
    chosen = distributions(world, logits).gather(-1, world.sequences.response_ids[..., None])[..., 0]
    return torch.where(world.sequences.response_mask, chosen, 0)


def probabilities(world: World, logits: Float[Tensor, "state token"]) -> Float[Tensor, " batch"]:
    """The probability of every response; they sum to 1."""
    return token_logprobs(world, logits).sum(1).exp()


def spread_within(groups: Int[Tensor, " item"], values: Float[Tensor, " item"]) -> float:
    """The largest difference between two values of one group."""
    size = int(groups.max()) + 1
    highest = torch.full((size,), -torch.inf, dtype=values.dtype).scatter_reduce(0, groups, values, "amax")
    lowest = torch.full((size,), torch.inf, dtype=values.dtype).scatter_reduce(0, groups, values, "amin")
    return float((highest - lowest)[highest >= lowest].max())
