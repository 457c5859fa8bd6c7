"""Samplers: the distribution that is trained, or the published stack's mistakes, to measure their effect.

The public code of the paper (on TRL 0.7.4) bans EOS below the minimum length while sampling but not in the
log-probabilities it trains on; and it leaves the model in train mode after an update, so that later rollouts are drawn
with dropout. Each is a policy here that samples so and is our own in everything else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.passes.repeated_prompts import every_copy_read
from models.policy.causal_policy import CausalPolicy
from rlhf_core.types import Limits, Policy, Sequences

DROPOUT = 0.1
DrawResponses = Callable[[Any, Sequence[Sequence[int]], Limits, Tensor, float], Sequences]


class DrawnOtherwise:
    """A policy that draws its responses by ``draw(policy, prompts, limits, uniforms, temperature)``; ``policy``
    otherwise."""

    def __init__(self, policy: Policy, draw: DrawResponses) -> None:
        self.policy, self.draw = policy, draw

    @property
    def identity(self) -> Mapping[str, object]:
        """The policy's, and how it is drawn from."""
        return {"policy": self.policy, "draw": self.draw}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def sample(
        self, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor, *, temperature: float = 1.0
    ) -> Sequences:
        """Draw a response per prompt."""
        drawn: Sequences = self.draw(self.policy, prompts, limits, uniforms, temperature)
        return drawn


def unrestricted(
    policy: Policy, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor, temperature: float
) -> Sequences:
    """EOS is banned while sampling, and allowed in every log-probability, the reference's too: what was drawn is not
    what is trained."""
    drawn = policy.sample(prompts, limits, uniforms, temperature=temperature)
    return replace(drawn, min_lengths=torch.zeros_like(drawn.min_lengths))


def with_dropout(
    policy: CausalPolicy, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor, temperature: float
) -> Sequences:
    """Dropout wherever the network has a dropout module (rate 0.1, GPT-2's), but for the first rollout, which in the
    published stack comes before the model is first put in train mode.

    The masks follow torch's generator seeded by the first uniform, so that a run repeats. That a weight has moved shows
    in the value head, which starts at zero.
    """
    if not any(bool(parameter.any()) for parameter in policy.value_head.parameters()):
        return policy.sample(prompts, limits, uniforms, temperature=temperature)
    cards = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=cards), dropped(policy, DROPOUT), every_copy_read():
        torch.manual_seed(int(uniforms[0, 0] * 2**53))
        return policy.sample(prompts, limits, uniforms, temperature=temperature)


@contextmanager
def dropped(policy: CausalPolicy, rate: float) -> Iterator[None]:
    """Dropout on what every dropout module of the language model lets through, in eval mode too.

    Raises:
        ValueError: the architecture has no dropout modules to act on (Llama's is inside its attention function).
    """
    modules = [module for module in policy.language_model.modules() if isinstance(module, nn.Dropout)]
    if not modules:
        raise ValueError(
            f"{type(policy.language_model).__name__} has no dropout modules; this sampler needs GPT-2's kind"
        )
    handles = [
        module.register_forward_hook(lambda _, __, output: nn.functional.dropout(output, rate)) for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


SAMPLERS: Mapping[str, Callable[[Any], Any]] = {
    "matched": lambda policy: policy,
    "unrestricted-logprobs": partial(DrawnOtherwise, draw=unrestricted),
    "dropout": partial(DrawnOtherwise, draw=with_dropout),
}
"""By name; "matched" is ours: one distribution for sampling and for every log-probability."""
