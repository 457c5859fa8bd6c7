"""A policy whose trained weights are divided among the processes: what the engine asks of it.

Each process then holds a part of every divided weight, of its gradient and of its optimizer's state, and the policy's
``parameters()`` are these parts. The parts meet in the policy's own passes, and where a checkpoint is written.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf_core.distributed import ProcessLost, count
from rlhf_core.types import Policy


@runtime_checkable
class Sharding(Protocol):
    """The division of a policy's weights. Every process calls the same methods, but for passes: it makes as many of
    them as it has rows for."""

    @property
    def parts(self) -> Sequence[torch.nn.Parameter]:
        """This process's parts of the divided weights; all are among the policy's parameters."""
        ...

    def training_pass(self, learns: Sequence[torch.nn.Parameter] | None) -> AbstractContextManager[None]:
        """Inside the block goes one forward pass with gradient, and its backward pass to ``learns`` (None: to all)."""
        ...

    def end_passes(self) -> None:
        """Wait until no process makes further passes, and help with theirs until then. Each part then has the gradient
        that is summed over all processes."""
        ...

    def whole(self, tensor: Tensor, part: torch.nn.Parameter) -> Tensor:
        """The processes' ``tensor``, each of the shape of its ``part``, as one, on the CPU of the first process; others
        get an empty tensor."""
        ...

    def own(self, tensor: Tensor, part: torch.nn.Parameter) -> Tensor:
        """This process's part of a whole ``tensor``."""
        ...

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Inside the block, the first process holds all weights on its CPU and may call ``policy.save`` alone."""
        ...


@runtime_checkable
class HasSharding(Protocol):
    """A policy that may be divided."""

    @property
    def sharding(self) -> Sharding | None:
        """How its weights are divided; None where every process holds all of them."""
        ...


def sharding_of(policy: Policy) -> Sharding | None:
    """How the policy's weights are divided; None where every process holds all of them."""
    return policy.sharding if isinstance(policy, HasSharding) else None


def divided(policy: Policy) -> frozenset[int]:
    """The ids of those of the policy's parameters that are parts."""
    sharding = sharding_of(policy)
    return frozenset(map(id, sharding.parts if sharding else ()))


def undivided(policy: Policy) -> list[torch.nn.Parameter]:
    """Those of the policy's parameters that every process holds whole."""
    parts = divided(policy)
    return [parameter for parameter in policy.parameters() if id(parameter) not in parts]


def check_sharding(policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state cannot be put together from that of the parts.

    Raises:
        ValueError: such an optimizer.
    """
    if sharding_of(policy) is not None and type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise ValueError(
            f"a policy loaded with shard=True is trained with Adam or AdamW, got {type(optimizer).__name__}: a "
            "checkpoint needs states that can be put together from their parts. Leave optimizer out, or shard"
        )


@contextmanager
def own_passes(policy: Policy) -> Iterator[None]:
    """The passes that this process makes of the ``policy``, other processes making more or fewer. An error is raised
    once the others have made theirs."""
    sharding = sharding_of(policy)
    try:
        yield
    except ProcessLost:
        raise
    except Exception:
        if sharding:
            sharding.end_passes()
        raise
    if sharding:
        sharding.end_passes()


def training_pass(policy: Policy, learns: Sequence[torch.nn.Parameter] | None) -> AbstractContextManager[None]:
    """A forward pass of the ``policy`` and its backward pass to ``learns``; raises ProcessLost where one process fails
    in it."""
    sharding = sharding_of(policy)
    return sharding.training_pass(learns) if sharding else nullcontext()


def gathered_weights(policy: Policy) -> AbstractContextManager[None]:
    """Inside the block, the first process may call ``policy.save`` alone."""
    sharding = sharding_of(policy)
    return sharding.gathered_weights() if sharding else nullcontext()


def trained_bytes(policy: Policy) -> int:
    """Bytes of all trained weights, those of other processes' parts too."""
    parts = divided(policy)
    return sum(one.nbytes * (count() if id(one) in parts else 1) for one in policy.parameters())
