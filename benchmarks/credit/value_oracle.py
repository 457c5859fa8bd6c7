"""The value that a token adds to the expected score, estimated from continuations sampled before and after it."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from rlhf_core.batching import Budgets, row_batches, run_in_parts
from rlhf_core.config import PPOConfig
from rlhf_core.masking import last_token
from rlhf_core.probe import generators
from rlhf_core.types import Limits, Policy, RewardModel, Rollout, Sequences


@dataclass(frozen=True, eq=False, kw_only=True)
class ValueDifferences:
    """Credit by value differences, raw score units: of all continuations, and of either half of them, which share no
    random number."""

    credit: Float[Tensor, "batch response"]
    halves: Float[Tensor, "2 batch response"]
    tokens: int
    """Tokens that were drawn."""


def value_differences(
    policy: Policy, reward: RewardModel, rollout: Rollout, config: PPOConfig, *, continuations: int
) -> ValueDifferences:
    """V(s_{t+1}) − V(s_t), on the last token r(x, y) − V(s_T), where V(s_t) is the mean score of ``continuations``
    responses that begin with y_<t and go on as the policy would, within the response's own limits (Kazemnejad et al.
    2024, "VinePPO"). Telescopes to r − V(s_1). Scores are raw.

    Continuation i of every state of a response is decided by the same random number at the same position (common
    random numbers): V is unbiased still, and differences of neighbours vary less than their values.

    Raises:
        ValueError: ``continuations`` is not an even number, so that there are no halves.
    """
    if continuations < 2 or continuations % 2:
        raise ValueError(f"continuations must be even, and 2 or more, to have halves; got {continuations}")
    sequences, mask = rollout.sequences, rollout.sequences.response_mask
    tokens = mask.cpu().nonzero()  # (row, time) of each
    draws = torch.arange(continuations).repeat(len(tokens))
    states = torch.column_stack([tokens.repeat_interleave(continuations, dim=0), draws])
    drawn = torch.zeros(*mask.shape, continuations, dtype=torch.float64, device=mask.device)
    uniforms = _uniforms(sequences, continuations)
    walk = Walk(policy=policy, temperature=config.temperature, sequences=sequences, uniforms=uniforms)
    lengths = (sequences.prompt_lengths + sequences.max_lengths.to(mask.device)).cpu()[states[:, 0]]

    def go_on(rows: Int[Tensor, " row"]) -> int:
        some = states[rows]
        whole = walk.completed(some)
        drawn[tuple(some.T)] = reward.score(whole, frozenset()).scores.to(drawn)
        bar.update(len(rows))
        return int(whole.response_mask.sum() - some[:, 1].sum())

    budget = Budgets.of(config).sampling
    with tqdm(total=len(states), desc="continuations", unit="response", disable=None) as bar:
        spent = run_in_parts(go_on, partial(row_batches, lengths), lengths, budget, phase="continuations")
    values = rearrange(drawn, "batch token (half draw) -> half batch token draw", half=2).mean(3)
    halves = torch.stack([neighbour_differences(half, rollout.raw_scores, sequences) for half in values])
    return ValueDifferences(credit=halves.mean(0), halves=halves, tokens=sum(spent))


def neighbour_differences(
    values: Float[Tensor, "batch response"], scores: Float[Tensor, " batch"], sequences: Sequences
) -> Float[Tensor, "batch response"]:
    """V(s_{t+1}) − V(s_t), with the score itself after the last token; 0 on padding."""
    mask = sequences.response_mask
    after = torch.nn.functional.pad(values[:, 1:], (0, 1))
    return (torch.where(last_token(mask), scores.to(values)[:, None], after) - values).masked_fill(~mask, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Walk:
    """Responses of the policy that begin as given ones did."""

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

    def _shifted(self, states: Int[Tensor, "state 3"]) -> Float[Tensor, "state position"]:
        """The numbers of each state's draw from its own position on."""
        rows, times, draws = states.T
        places = times[:, None] + torch.arange(self.uniforms.shape[2])
        own = torch.nn.functional.pad(self.uniforms[rows, draws], (0, self.uniforms.shape[2]))
        return own.gather(1, places)


def _uniforms(sequences: Sequences, draws: int) -> Float[Tensor, "batch draw position"]:
    """A row's from its own generator; a longer limit of another row only appends some."""
    longest = int(sequences.max_lengths.max())
    drawn = [
        torch.rand(longest, draws, dtype=torch.float64, generator=generator).T
        for generator in generators("value oracle", sequences)
    ]
    return torch.stack(drawn)
