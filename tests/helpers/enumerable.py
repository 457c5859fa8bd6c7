"""A policy and a reward whose every continuation can be enumerated."""

from collections.abc import Sequence

import torch
from fakes import TablePolicy

from rlhf_core import TokenReward


class Eighths(TablePolicy):
    """Three tokens, EOS among them; probabilities are multiples of 1/8, with EOS banned too."""

    def __init__(self) -> None:
        super().__init__(vocab=3)
        self.chances = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.125, 0.375], [0.5, 0.375, 0.125]])
        self.logits = torch.nn.Parameter(self.chances.log())


ODD = TokenReward(lambda prompts, responses: [p[0] + 7.0 * len(r) * r[-1] - r[0] for p, r in zip(prompts, responses)])


def expected(policy: Eighths, prompt: Sequence[int], response: Sequence[int], low: int, high: int) -> float:
    """The value of a state, by enumeration."""
    if len(response) == high or response[-1:] == [0]:
        return float(ODD.fn([prompt], [response])[0])
    chances = policy.chances[[*prompt, *response][-1]].clone()
    if len(response) < low:
        chances[0] = 0
        chances /= chances.sum()
    return sum(
        float(chance) * expected(policy, prompt, [*response, token], low, high)
        for token, chance in enumerate(chances)
        if chance > 0
    )
