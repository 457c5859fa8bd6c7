"""Prompts and responses from elsewhere, in the form of sequences that a policy would have sampled."""

from collections.abc import Sequence

import torch

from rlhf_core.names import counted
from rlhf_core.types import Sequences

Rows = Sequence[Sequence[int]]
"""Token ids, without padding."""


def given_sequences(prompts: Rows, responses: Rows, *, finished: bool) -> Sequences:
    """Prompts and responses as token ids, in the form that ``rollout.measure`` takes.

    Lengths restrict nothing: EOS could have come at any token. ``finished`` says whether EOS ends every response, or
    generation was cut there.

    Raises:
        ValueError: no rows, not as many responses as prompts, or an empty prompt or response.
    """
    empty = [row for row, pair in enumerate(zip(prompts, responses, strict=False)) if not all(map(len, pair))]
    if not len(prompts) or len(prompts) != len(responses) or empty:
        wrong = (
            f"row {empty[0]} is empty"
            if empty
            else f"got {counted(len(prompts), 'prompt')} and {counted(len(responses), 'response')}"
        )
        raise ValueError(f"given_sequences: {wrong}; give a prompt and a response of one token or more for each row")
    lengths = torch.tensor([len(response) for response in responses])
    prompt, response = max(map(len, prompts), default=0), max(map(len, responses), default=0)
    mask = torch.arange(response) < lengths[:, None]
    return Sequences(
        prompt_ids=torch.tensor([[0] * (prompt - len(row)) + list(row) for row in prompts]),
        prompt_mask=torch.tensor([[False] * (prompt - len(row)) + [True] * len(row) for row in prompts]),
        response_ids=torch.tensor([list(row) + [0] * (response - len(row)) for row in responses]),
        response_mask=mask,
        min_lengths=torch.zeros_like(lengths),
        max_lengths=lengths,
        finished=torch.full_like(lengths, finished, dtype=torch.bool),
    )
