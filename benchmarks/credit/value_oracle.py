"""The value that a token adds to the expected score, estimated from continuations sampled before and after it."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rlhf_core.batching import Budgets
from rlhf_core.config import PPOConfig
from rlhf_core.continuations import Continuations
from rlhf_core.masking import last_token
from rlhf_core.probe import generators
from rlhf_core.types import Policy, RewardModel, Rollout, Sequences


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
    going_on = Continuations(
        policy=policy,
        temperature=config.temperature,
        sequences=sequences,
        uniforms=_uniforms(sequences, continuations),
    )
    with tqdm(total=len(states), desc="continuations", unit="response", disable=None) as bar:
        found = going_on.scored(states, reward, Budgets.of(config).sampling, done=bar.update)
    drawn = torch.zeros(*mask.shape, continuations, dtype=torch.float64, device=mask.device)
    drawn[tuple(states.T)] = found.scores.to(drawn)
    values = rearrange(drawn, "batch token (half draw) -> half batch token draw", half=2).mean(3)
    halves = torch.stack([neighbour_differences(half, rollout.raw_scores, sequences) for half in values])
    return ValueDifferences(credit=halves.mean(0), halves=halves, tokens=int(found.tokens.sum()))


def neighbour_differences(
    values: Float[Tensor, "batch response"], scores: Float[Tensor, " batch"], sequences: Sequences
) -> Float[Tensor, "batch response"]:
    """V(s_{t+1}) − V(s_t), with the score itself after the last token; 0 on padding."""
    mask = sequences.response_mask
    after = torch.nn.functional.pad(values[:, 1:], (0, 1))
    return (torch.where(last_token(mask), scores.to(values)[:, None], after) - values).masked_fill(~mask, 0)


def _uniforms(sequences: Sequences, draws: int) -> Float[Tensor, "batch draw position"]:
    """A row's from its own generator; a longer limit of another row only appends some."""
    longest = int(sequences.max_lengths.max())
    drawn = [
        torch.rand(longest, draws, dtype=torch.float64, generator=generator).T
        for generator in generators("value oracle", sequences)
    ]
    return torch.stack(drawn)
