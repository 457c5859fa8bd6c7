"""The frozen reference: the same network as it was at the start.

Adapters are never merged: merging into 4-bit weights and back moves them by several nats.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel

TRAINED, FROZEN = "default", "reference"


@runtime_checkable
class Reference(Protocol):
    """A frozen language model that may share weights with the policy."""

    @property
    def lm(self) -> PreTrainedModel:
        """The model that runs; the policy's own where only adapters differ."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Inside the block, ``lm`` computes the reference; outside, the policy."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenCopy:
    """A second copy of the weights, for full fine-tuning."""

    lm: PreTrainedModel
    ready: Callable[[], object] = lambda: None
    """Has its weights at hand; something to do where they are divided among processes."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing to switch: the copy is always the reference."""
        self.ready()
        yield


@dataclass(frozen=True, eq=False, kw_only=True)
class AdapterOff:
    """The base model under a fresh adapter."""

    lm: PreTrainedModel
    adapters: Any
    """The PeftModel around ``lm``."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Adapter off inside, on and trainable outside."""
        require_trained_adapter(self.adapters)
        try:
            with self.adapters.disable_adapter():
                yield
        finally:
            require_trained_adapter(self.adapters)


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenAdapter:
    """A frozen adapter beside the trained one: the adapter that the policy started from, or an auxiliary."""

    lm: PreTrainedModel
    adapters: Any
    name: str = FROZEN
    carries_embeddings: bool = False
    """Whether it came with the base's embeddings, which are then saved and loaded with it."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block the frozen adapter is active, outside the trained one."""
        require_trained_adapter(self.adapters)
        try:
            self.adapters.set_adapter(self.name, inference_mode=True)  # trainable otherwise
            yield
        finally:
            self.adapters.set_adapter(TRAINED)
            require_trained_adapter(self.adapters)


def require_trained_adapter(adapters: Any) -> None:
    """The trained adapter, and only it, is on, unmerged and trainable.

    Raises:
        RuntimeError: it is not; something switched adapters behind the policy's back.
    """
    status = adapters.get_model_status()
    if not (
        status.active_adapters == [TRAINED]
        and status.enabled is True
        and status.merged_adapters == []
        and status.requires_grad[TRAINED] is True
        and not any(trains for name, trains in status.requires_grad.items() if name != TRAINED)
    ):
        raise RuntimeError(f"the policy's adapter {TRAINED!r} must be the one active, unmerged and trainable: {status}")


def adapter_settings(adapters: Any) -> dict[str, object]:
    """The settings that determine an adapter's numbers besides its weights: its configuration without names of
    sources."""
    config = adapters.peft_config[TRAINED].to_dict()
    origin = ("base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping")
    return {name: value for name, value in sorted(config.items()) if name not in origin}
