"""Continuations: how the policy would have gone on from inside a response, and what that would have scored.

A state is (row, time, draw): the row's prompt and its first ``time`` response tokens, to be continued by the row's
random numbers of that draw. Nothing here touches the stream that responses are sampled from.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.batching import TokenBudget, row_batches, run_in_parts
from rlhf_core.config import PPOConfig
from rlhf_core.evidence import ContinuationValues
from rlhf_core.probe import keyed_generator
from rlhf_core.types import Limits, Policy, RewardModel, Sequences


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredStates:
    """One continuation of each state: the raw ``scores`` of the whole responses, and how many ``tokens`` were drawn."""

    scores: Float[Tensor, " state"]
    tokens: Int[Tensor, " state"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Continuations:
    """Responses of the policy that begin as given ones did, within the limits of those.

    ``uniforms[i, j, t]`` in [0, 1) decides what draw j of row i has at position t, whatever state it begins in (common
    random numbers): the mean over draws is unbiased still, and neighbouring states differ by less noise.
    """

    policy: Policy
    temperature: float
    sequences: Sequences
    uniforms: Float[Tensor, "batch draw position"]

    def completed(self, states: Int[Tensor, "state 3"]) -> Sequences:
        """Whole responses, one per state (row, time, draw): the row's tokens before that time, then tokens that the
        policy draws."""
        rows, times, _ = states.T
        whole, device = self.sequences.select(rows), self.sequences.response_ids.device
        begun = [row[:time] for row, time in zip(whole.responses(), times.tolist(), strict=True)]
        low, high = whole.min_lengths.cpu() - times, whole.max_lengths.cpu() - times
        read = [prompt + begin for prompt, begin in zip(whole.prompts(), begun, strict=True)]
        limits = Limits(min_lengths=low.clamp(min=0), max_lengths=high)
        ended = self.policy.sample(read, limits, self._shifted(states), temperature=self.temperature)
        full = [torch.tensor(before + after) for before, after in zip(begun, ended.responses(), strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(full, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in full], device=device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        return replace(whole, response_ids=ids, response_mask=mask, finished=ended.finished.to(device))

    def scored(
        self,
        states: Int[Tensor, "state 3"],
        reward: RewardModel,
        budget: TokenBudget,
        done: Callable[[int], object] = lambda rows: None,
    ) -> ScoredStates:
        """Continue every state and score the whole, as many at a time as the ``budget`` of sampling allows; ``done`` is
        told how many more there are.

        Raises:
            MemoryError: a single row ran out of memory.
        """
        scores, drawn = torch.zeros(len(states), dtype=torch.float64), torch.zeros(len(states), dtype=torch.long)
        limits = self.sequences.prompt_lengths + self.sequences.max_lengths.to(self.sequences.response_ids.device)
        lengths = limits.cpu()[states[:, 0]]

        def go_on(rows: Int[Tensor, " row"]) -> None:
            whole = self.completed(states[rows])
            scores[rows] = reward.score(whole, frozenset()).scores.to(scores)
            drawn[rows] = whole.response_lengths.cpu() - states[rows, 1]
            done(len(rows))

        run_in_parts(go_on, partial(row_batches, lengths), lengths, budget, phase="continuations")
        return ScoredStates(scores=scores, tokens=drawn)

    def _shifted(self, states: Int[Tensor, "state 3"]) -> Float[Tensor, "state position"]:
        """The numbers of each state's draw from its own position on."""
        rows, times, draws = states.T
        places = times[:, None] + torch.arange(self.uniforms.shape[2])
        own = torch.nn.functional.pad(self.uniforms[rows, draws], (0, self.uniforms.shape[2]))
        return own.gather(1, places)


@torch.no_grad()
def continuation_values(
    request: ContinuationValues,
    policy: Policy,
    reward: RewardModel,
    sequences: Sequences,
    *,
    config: PPOConfig,
    budget: TokenBudget,
) -> Float[Tensor, "batch response 2"]:
    """What ``request`` asks for: the mean raw score of the continuations of each state that it names, and the tokens
    that were drawn for it.

    The random numbers of a row are fixed by the config's seed and the row's prompt. So a value depends on nothing but
    the policy, the prompt, the row's limits and the tokens before the state: it is a potential of the state, also with
    few continuations, and a run taken up again draws the same.

    Raises:
        MemoryError: a single row ran out of memory.
    """
    mask, draws = sequences.response_mask, request.continuations
    places = request.at(mask).cpu().nonzero()
    found = torch.zeros(request.shape(*mask.shape), device=mask.device)
    if not len(places):
        return found
    states = torch.column_stack([places.repeat_interleave(draws, dim=0), torch.arange(draws).repeat(len(places))])
    going_on = Continuations(
        policy=policy,
        temperature=config.temperature,
        sequences=sequences,
        uniforms=prompt_uniforms(config.seed, sequences, draws),
    )
    drawn = going_on.scored(states, reward, budget)
    values = drawn.scores.reshape(-1, draws).mean(1)
    tokens = drawn.tokens.reshape(-1, draws).sum(1)
    found[tuple(places.T)] = torch.stack([values, tokens.to(values)], dim=1).to(found)
    return found


def prompt_uniforms(seed: int, sequences: Sequences, draws: int) -> Float[Tensor, "batch draw position"]:
    """Uniform numbers for ``draws`` continuations of each row, the same for rows of the same prompt; a longer limit of
    another row only appends some."""
    longest = int(sequences.max_lengths.max())
    drawn = [
        torch.rand(longest, draws, dtype=torch.float64, generator=keyed_generator("continuations", seed, prompt)).T
        for prompt in sequences.prompts()
    ]
    return torch.stack(drawn)


@torch.no_grad()
def greedy_scores(
    policy: Policy, reward: RewardModel, sequences: Sequences, *, responses_per_prompt: int, budget: TokenBudget
) -> Float[Tensor, " batch"]:
    """Raw score of the greedy response to each prompt, for each of its ``responses_per_prompt`` rows, which stand one
    after the other; the limits of the first row hold.

    Raises:
        MemoryError: a single row ran out of memory.
    """
    first = torch.arange(0, len(sequences), responses_per_prompt)
    unused = torch.zeros(len(sequences), 1, int(sequences.max_lengths.max()), dtype=torch.float64)
    greedy = Continuations(policy=policy, temperature=0.0, sequences=sequences, uniforms=unused)
    states = torch.column_stack([first, torch.zeros_like(first), torch.zeros_like(first)])
    return greedy.scored(states, reward, budget).scores.repeat_interleave(responses_per_prompt)
