"""Features of the state before token t (the prompt and y_<t), as inputs of a potential.

A feature that knew the token it precedes, or anything later, would make its potential a function of the future, and it
would no longer be shaping.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import evidence_of
from rlhf_core.evidence import EvidenceRequest, HiddenTap
from rlhf_core.types import Rollout


@runtime_checkable
class StateFeature(Protocol):
    """``size`` numbers per state, in any units; values on padding are ignored.

    The same function of the state for all rollouts of a step, and blind to the token at t and to all later ones."""

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """The evidence it reads."""
        ...

    @property
    def size(self) -> int:
        """Numbers a state."""
        ...

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response feature"]:
        """The numbers, finite on every response token."""
        ...


@dataclass(frozen=True, kw_only=True)
class StateFeatures(HiddenTap):
    """The reward model's hidden state before every token, h R / √hidden with R of ``dims`` columns drawn once from
    N(0, 1): a random projection keeps what is linear in the state as well as ``dims`` numbers can (Johnson and
    Lindenstrauss 1984). The model is frozen, so a number means the same at every step of a run."""

    dims: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.dims) is not int or self.dims < 1:
            raise ValueError(
                f"StateFeatures: dims must be the number of dimensions of a state, 1 or more, got {self.dims!r}"
            )

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """(batch, response, dims)."""
        return (batch, response, self.dims)

    def read(
        self, hidden: Float[Tensor, "batch response hidden"], score: object
    ) -> Float[Tensor, "batch response dim"]:
        """The projection, in float32."""
        size = hidden.shape[-1]
        drawn = torch.randn(size, self.dims, generator=torch.Generator().manual_seed(self.seed))
        projected: Tensor = hidden.float() @ (drawn / size**0.5).to(hidden.device)
        return projected


@dataclass(frozen=True, kw_only=True)
class HiddenState:
    """The frozen reward model's hidden state, by random projection; ``request`` is a ``StateFeatures``, which sets the
    number of dimensions."""

    request: StateFeatures = StateFeatures()

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """The projected states, read off the scoring pass."""
        return frozenset({self.request})

    @property
    def size(self) -> int:
        """Numbers the state is kept as."""
        return self.request.dims

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response feature"]:
        """(batch, response, dims)."""
        return evidence_of(rollout, self.request, "HiddenState")


@dataclass(frozen=True, kw_only=True)
class Position:
    """How many tokens came before, and its square."""

    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset()
    size: ClassVar[int] = 2

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response feature"]:
        """t and t², t from 0."""
        mask = rollout.sequences.response_mask
        before = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)
        return torch.stack([before, before**2], dim=-1)


@dataclass(frozen=True, kw_only=True)
class StateValue:
    """The critic's value of the state, which moves as the critic learns."""

    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset()
    size: ClassVar[int] = 1

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response feature"]:
        """V(s_t), of the state before token t."""
        return rollout.values[..., None]


@dataclass(frozen=True, kw_only=True)
class PriorLogprobs:
    """Log-probability of all earlier tokens together, under the policy and its reference, nats."""

    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset()
    size: ClassVar[int] = 2

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response feature"]:
        """Σ_{k<t} log π(y_k) and Σ_{k<t} log π_ref(y_k)."""
        tokens = torch.stack([rollout.logprobs, rollout.ref_logprobs], dim=-1).double()
        return tokens.cumsum(1) - tokens
