"""What a token adds to the expected score, by drawing how the policy would have gone on before and after it."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.passes.sampling import left_padded
from rlhf_core.batching import TokenBudget, row_batches, run_in_parts
from rlhf_core.masking import last_token
from rlhf_core.probe import generators
from rlhf_core.types import Limits, Policy, RewardModel, Sequences


@dataclass(frozen=True, eq=False, kw_only=True)
class ValueDifferences:
    """Credit by value differences, raw score units: of all continuations, and of either half of them, which share no
    random number."""

    credit: Float[Tensor, "batch response"]
    halves: Float[Tensor, "2 batch response"]
    tokens: int
    """Tokens that were drawn."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The state before token ``time`` of a response, from which continuation ``draw`` starts."""

    row: int
    time: int
    draw: int


def value_differences(
    policy: Policy,
    reward: RewardModel,
    sequences: Sequences,
    scores: Float[Tensor, " batch"],
    *,
    temperature: float,
    continuations: int,
    budget: TokenBudget,
) -> ValueDifferences:
    """V(s_{t+1}) − V(s_t), on the last token r(x, y) − V(s_T), where V(s_t) is the mean score of ``continuations``
    responses that begin with y_<t and go on as the policy would, within the response's own limits (Kazemnejad et al.
    2024, "VinePPO"). Telescopes to r − V(s_1). ``scores`` are r(x, y).

    Continuation i of every state of a response is decided by the same random number at the same position (common
    random numbers): V is unbiased still, and differences of neighbours vary less than their values.

    Raises:
        ValueError: ``continuations`` is no even number, so that there are no halves.
    """
    if continuations < 2 or continuations % 2:
        raise ValueError(f"continuations must be even, and 2 or more, to have halves; got {continuations}")
    mask = sequences.response_mask
    states = [
        State(row=row, time=time, draw=draw)
        for row, length in enumerate(mask.sum(1).tolist())
        for time in range(length)
        for draw in range(continuations)
    ]
    drawn = torch.zeros(*mask.shape, continuations, dtype=torch.float64, device=mask.device)
    uniforms = _uniforms(sequences, continuations)
    walk = Walk(policy=policy, temperature=temperature, sequences=sequences, uniforms=uniforms)
    lengths = (sequences.prompt_lengths + sequences.max_lengths.to(mask.device))[[state.row for state in states]]

    def go_on(rows: Int[Tensor, " row"]) -> int:
        some = [states[row] for row in rows.tolist()]
        whole = walk.completed(some)
        where = tuple(torch.tensor([[s.row, s.time, s.draw] for s in some], device=mask.device).T)
        drawn[where] = reward.score(whole, frozenset()).scores.to(drawn)
        return int(whole.response_mask.sum()) - sum(state.time for state in some)

    tokens = run_in_parts(go_on, partial(row_batches, lengths.cpu()), lengths.cpu(), budget, phase="continuations")
    values = drawn.unflatten(2, (2, continuations // 2)).mean(3).permute(2, 0, 1)
    halves = torch.stack([differences(half, scores, sequences) for half in values])
    return ValueDifferences(credit=halves.mean(0), halves=halves, tokens=sum(tokens))


def differences(
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

    def completed(self, states: list[State]) -> Sequences:
        """Whole responses, one a state: its beginning, and what the policy drew after it."""
        whole, device = self.sequences, self.sequences.response_ids.device
        prompts, responses = whole.prompts(), whole.responses()
        begun = [responses[state.row][: state.time] for state in states]
        rows, times = torch.tensor([[state.row, state.time] for state in states]).T
        low, high = whole.min_lengths.cpu()[rows], whole.max_lengths.cpu()[rows]
        limits = Limits(min_lengths=(low - times).clamp(min=0), max_lengths=high - times)
        read = [prompts[state.row] + begin for state, begin in zip(states, begun, strict=True)]
        ended = self.policy.sample(read, limits, self._shifted(states), temperature=self.temperature)
        full = [torch.tensor(a + b) for a, b in zip(begun, ended.responses(), strict=True)]
        prompt_ids, prompt_mask = left_padded([prompts[state.row] for state in states], device)
        ids = torch.nn.utils.rnn.pad_sequence(full, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in full], device=device)
        return Sequences(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=ids,
            response_mask=torch.arange(ids.shape[1], device=device) < lengths[:, None],
            min_lengths=low.to(device),
            max_lengths=high.to(device),
            finished=ended.finished.to(device),
        )

    def _shifted(self, states: list[State]) -> Float[Tensor, "state position"]:
        """The numbers of each state's draw from its own position on."""
        shifted = torch.zeros(len(states), self.uniforms.shape[2], dtype=torch.float64)
        for line, state in zip(shifted, states, strict=True):
            rest = self.uniforms[state.row, state.draw, state.time :]
            line[: len(rest)] = rest
        return shifted


def _uniforms(sequences: Sequences, draws: int) -> Float[Tensor, "batch draw position"]:
    """A row's from its own generator; a longer limit of another row only appends some."""
    longest = int(sequences.max_lengths.max())
    drawn = [
        torch.rand(longest, draws, dtype=torch.float64, generator=generator).T
        for generator in generators("value oracle", sequences)
    ]
    return torch.stack(drawn)
