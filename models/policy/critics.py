"""Where a policy's values come from: its own trunk, or a network beside it. The value loss trains a critic.

Critics are made by :mod:`models.policy.critic_loading`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.passes.context_length import context_length
from models.passes.forward import response_hidden
from models.passes.gradient_checkpointing import pass_mode
from models.passes.layout import PaddedRows
from models.policy.critic_names import CriticKind
from models.policy.value_head import ValueHead

FOLDER = "critic"
"""Where a critic apart is saved, below the policy."""


@runtime_checkable
class Critic(Protocol):
    """A value head, and the trunk it reads. Also a ``Critic`` of :mod:`rlhf_core.critic`."""

    @property
    def head(self) -> ValueHead:
        """The last layer."""
        ...

    @property
    def apart(self) -> bool:
        """Whether it has a trunk of its own, which the policy's log-probabilities do not depend on."""
        ...

    @property
    def context(self) -> int | None:
        """Longest row it reads, in tokens; None where it has no limit of its own."""
        ...

    @property
    def identity(self) -> Mapping[str, object]:
        """What the policy's identity says of it: nothing of a shared trunk."""
        ...

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trained ones that only values depend on; the head's come last."""
        ...

    def values(
        self,
        rows: PaddedRows,
        response_mask: Bool[Tensor, "batch response"],
        hidden: Float[Tensor, "token hidden"],
    ) -> Float[Tensor, " token"]:
        """Value of the state before each response token, in score units, row after row. ``hidden`` is the policy's own
        last hidden state there."""
        ...

    def save(self, folder: str) -> None:
        """Write it into the policy's ``folder``."""
        ...

    def read(self, folder: str) -> Callable[[], object]:
        """Read what ``save`` wrote and change nothing; what is returned puts it in place. Raises ValueError for another
        critic."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class SharedTrunk:
    """A value head on the policy's own trunk: no further pass, and the value loss moves the policy's weights too."""

    head: ValueHead

    @property
    def apart(self) -> bool:
        """It shares everything but its head."""
        return False

    @property
    def context(self) -> int | None:
        """The policy's own."""
        return None

    @property
    def identity(self) -> Mapping[str, object]:
        """Nothing."""
        return {}

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The head's."""
        return tuple(self.head.parameters())

    def values(
        self,
        rows: PaddedRows,
        response_mask: Bool[Tensor, "batch response"],
        hidden: Float[Tensor, "token hidden"],
    ) -> Float[Tensor, " token"]:
        """The head on the policy's hidden states."""
        values: Tensor = self.head(hidden)
        return values

    def save(self, folder: str) -> None:
        """Write the head."""
        self.head.save(folder)

    def read(self, folder: str) -> Callable[[], object]:
        """Read the head; raises as :meth:`ValueHead.read`."""
        return self.head.read(folder)


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnTrunk:
    """A value head on a network beside the policy's, which may share frozen weights with it: one more pass over every
    response, and no gradient from values to policy or back."""

    kind: CriticKind
    trunk: PreTrainedModel
    head: ValueHead
    write: Callable[[str], None]
    """Writes the trunk's trained weights into a folder."""
    read_back: Callable[[str], Callable[[], object]]
    """Reads back what ``write`` wrote, and changes nothing: what it returns puts that in place."""
    checkpointed: tuple[nn.Module, ...]
    """Modules that recompute their activations in the backward pass; empty where that is off."""

    @property
    def apart(self) -> bool:
        """Its trained parameters are its own."""
        return True

    @property
    def context(self) -> int | None:
        """The trunk's."""
        return context_length(self.trunk)

    @property
    def identity(self) -> Mapping[str, object]:
        """Its kind, and the architecture of its trunk."""
        return {"critic": self.kind, "critic_trunk": type(self.trunk).__name__}

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What is trained of the trunk, then the head's."""
        of_trunk = (parameter for parameter in self.trunk.parameters() if parameter.requires_grad)
        return (*of_trunk, *self.head.parameters())

    def values(
        self,
        rows: PaddedRows,
        response_mask: Bool[Tensor, "batch response"],
        hidden: Float[Tensor, "token hidden"],
    ) -> Float[Tensor, " token"]:
        """The head on the trunk's own hidden states."""
        with pass_mode(self.trunk, self.checkpointed):
            values: Tensor = self.head(response_hidden(self.trunk, rows, response_mask))
        return values

    def save(self, folder: str) -> None:
        """Write trunk and head into ``folder/critic``."""
        own = Path(folder, FOLDER)
        own.mkdir(parents=True, exist_ok=True)
        self.write(str(own))
        self.head.save(str(own))

    def read(self, folder: str) -> Callable[[], object]:
        """Read ``folder/critic``.

        Raises:
            ValueError: no critic of this kind is there, or one of another size.
        """
        own = Path(folder, FOLDER)
        if not own.is_dir():
            raise ValueError(f"{folder} holds no folder {FOLDER!r}, where a critic {self.kind!r} is saved")
        parts = (self.read_back(str(own)), self.head.read(str(own)))

        def put() -> None:
            for part in parts:
                part()

        return put
