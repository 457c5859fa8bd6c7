"""How responses are drawn: as they are trained, or with the published stack's mistakes, to measure what those do.

The public code of the paper (on TRL 0.7.4) bans EOS below the minimum length while sampling but not in the
log-probabilities it trains on; and it leaves the model in train mode after an update, so that later rollouts are drawn
with dropout. Each is a policy here that samples so and is our own in everything else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.types import Limits, Policy, Sequences

DROPOUT = 0.1


class UnrestrictedLogprobs:
    """EOS is banned while sampling and allowed in every log-probability, the reference's too: what was drawn is not
    what is trained."""

    def __init__(self, policy: Policy) -> None:
        object.__setattr__(self, "policy", policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.policy, name, value)

    def sample(self, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor) -> Sequences:
        """Draw under the minimum length, then forget it."""
        drawn: Sequences = self.policy.sample(prompts, limits, uniforms)
        return replace(drawn, min_lengths=torch.zeros_like(drawn.min_lengths))


class DropoutWhileSampling:
    """Responses are drawn with dropout on every residual branch (rate 0.1, GPT-2's), log-probabilities are without.

    As in the published stack the first rollout, before any update, is drawn without. The masks follow torch's
    generator seeded by the first uniform, so that a run repeats.
    """

    def __init__(self, policy: Policy) -> None:
        object.__setattr__(self, "policy", policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.policy, name, value)

    def sample(self, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor) -> Sequences:
        """Draw with dropout, but for the first rollout and for evaluations before it."""
        if self.optimized():
            with torch.random.fork_rng(), dropped(self.policy, DROPOUT):
                torch.manual_seed(int(uniforms[0, 0] * 2**53))
                return self.policy.sample(prompts, limits, uniforms)
        return self.policy.sample(prompts, limits, uniforms)

    def optimized(self) -> bool:
        """Whether a weight has moved: the value head starts at zero and gets its first gradient in the first update."""
        return any(bool(parameter.any()) for parameter in self.policy.value_head.parameters())


@contextmanager
def dropped(policy: Any, rate: float) -> Iterator[None]:
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


def _matched(policy: Any) -> Any:
    return policy


SAMPLERS: Mapping[str, Callable[[Any], Any]] = {
    "matched": _matched,
    "unrestricted-logprobs": UnrestrictedLogprobs,
    "dropout": DropoutWhileSampling,
}
"""By name; "matched" is ours: one distribution for sampling and for every log-probability."""
