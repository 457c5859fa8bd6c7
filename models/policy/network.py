"""The parts of a policy: the network that is trained, and everything that belongs to it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.attention.reader import AttentionReader, UnreadableAttention, checked_reader
from models.passes.context_length import context_length
from models.passes.gradient_checkpointing import pass_mode
from models.policy.critics import Critic
from models.policy.precision import Precision
from models.weights.language_model import vocabulary
from models.weights.reference import Reference
from rlhf_core.evidence import Source


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """The parts of a policy: what is trained, the frozen reference, and what is written when it is saved."""

    lm: PreTrainedModel
    critic: Critic
    """Where its values come from."""
    reference: Reference
    write: Callable[[str], None]
    """Writes the weights, or the adapter, into a folder."""
    read: Callable[[str], Callable[[], object]]
    """Reads back what ``write`` wrote without changing anything; calling the result applies it."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    compute_dtype: torch.dtype
    checkpointed: tuple[nn.Module, ...]
    """Modules that recompute their activations in the backward pass; empty if that is off."""
    auxiliaries: Mapping[str, Reference] = field(default_factory=dict)
    """Further frozen models over the same tokens, by name; never trained, never saved."""
    precision: Precision = field(default_factory=Precision)
    sampling_copy: PreTrainedModel | None = None
    """``lm`` with its weights in ``precision.sampling_dtype``, where that is asked for."""

    @property
    def sampled_from(self) -> PreTrainedModel:
        """The model that draws tokens: ``lm``, or its copy."""
        return self.lm if self.sampling_copy is None else self.sampling_copy

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Mode and precision of one pass of any of its models."""
        with self.precision.passes(self.lm.device), pass_mode(self.lm, self.checkpointed):
            yield

    @cached_property
    def context(self) -> int | None:
        """Longest row that policy and critic both read, in tokens; None where neither names a limit."""
        limits = (context_length(self.lm), self.critic.context)
        return min((limit for limit in limits if limit is not None), default=None)

    @cached_property
    def readers(self) -> Mapping[Source, AttentionReader | UnreadableAttention]:
        """Checked readers of the attention of policy and reference, one for both where they are one model."""
        models: dict[Source, PreTrainedModel] = {"policy": self.lm, "reference": self.reference.lm}
        built = {id(lm): checked_reader(lm, vocabulary(self.lm)) for lm in models.values()}
        return {source: built[id(lm)] for source, lm in models.items()}
