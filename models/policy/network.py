"""The parts of a policy: the network that is trained, and everything that belongs to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.attention.reader import AttentionReader, UnreadableAttention, checked_reader
from models.passes.context_length import context_length
from models.passes.sampling import Decoder
from models.policy.critics import Critic
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
    decoder: Callable[[Int[Tensor, " row"]], Decoder]
    """Makes the decoder of a batch whose rows may grow by so many tokens each."""
    checkpointed: tuple[nn.Module, ...]
    """Modules that recompute their activations in the backward pass; empty if that is off."""
    auxiliaries: Mapping[str, Reference] = field(default_factory=dict)
    """Further frozen models over the same tokens, by name; never trained, never saved."""

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
