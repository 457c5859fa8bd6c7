"""The parts of a policy: the network that is trained, and everything that belongs to it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.attention.reader import AttentionReader, UnreadableAttention, checked_reader
from models.passes.context_length import context_length
from models.passes.gradient_checkpointing import pass_mode
from models.passes.sampling import Decoder
from models.policy.critics import Critic
from models.policy.precision import Precision
from models.policy.sharding import DividedWeights
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
    sharding: DividedWeights | None = None
    """How the weights of policy and reference are divided among processes; None: each process has all."""
    precision: Precision = field(default_factory=Precision)
    sampling_copy: PreTrainedModel | None = None
    """``lm`` with its weights in ``precision.sampling_dtype``, where that is asked for."""

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """Trainable weights of the model (where they are divided, this process's parts), then the critic's own."""
        of_lm = self.sharding.parts if self.sharding else self.lm.parameters()
        return (*(weight for weight in of_lm if weight.requires_grad), *self.critic.parameters())

    @contextmanager
    def policy_pass(self) -> Iterator[None]:
        """One pass of the policy: its weights are at hand, and its mode is the one that the pass needs."""
        if self.sharding:
            self.sharding.policy_pass()
        with self.mode():
            yield

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
        with torch.no_grad(), self.policy_pass():
            of_policy = of_reference = checked_reader(self.lm, vocabulary(self.lm))
        if self.reference.lm is not self.lm:
            with self.reference.active():
                of_reference = checked_reader(self.reference.lm, vocabulary(self.lm))
        return {"policy": of_policy, "reference": of_reference}
