"""Full fine-tuning with weights divided among processes: FSDP2 of torch, for models that one card cannot train.

Each process holds an equal part of the trained weights, their gradients, Adam's states and the frozen reference.

- A pass without gradient reads whole weights: all processes put one model together before it (4 bytes per weight), and
  then make as many passes as they like, since sampling would otherwise gather every layer for every token.
- A training pass gathers one layer at a time, forward and backward, and adds the gradients up as it goes. So all
  processes make it together. One that has no rows left makes an empty pass, whose gradient is 0.

Before each pass the processes say which kind they want next, and all take the kind that comes first in ``Kind``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.passes.gradient_checkpointing import pass_mode
from models.progress_bars import without_bars
from models.weights.division import gather, like, local, own_rows, reshard, weights_of, whole_on_first
from rlhf_core.distributed import ProcessLost, count, gathered, join, rank, writes


class Kind(IntEnum):
    """What a process wants to do next."""

    POLICY = 0
    REFERENCE = 1
    TRAINING = 2
    NOTHING = 3


def require_several() -> None:
    """Meet the other processes, between which weights are to be divided.

    Raises:
        ValueError: there are none.
    """
    if join() == 1:
        raise ValueError(
            "shard=True divides the weights among processes, and this is one alone; start several "
            "(torchrun --nproc-per-node 8 train.py), or leave shard out"
        )


@final
class DividedWeights:
    """A ``Sharding`` (see rlhf_core.sharding) of the ``trained`` model and its frozen ``reference``, which ``divide``
    has divided. ``checkpointed``: modules that recompute their activations in a training pass."""

    def __init__(
        self, trained: PreTrainedModel, reference: PreTrainedModel, checkpointed: Sequence[nn.Module] = ()
    ) -> None:
        self._models = {Kind.POLICY: trained, Kind.REFERENCE: reference}
        self._lm, self._checkpointed = trained, checkpointed
        self._weights = weights_of(trained)
        self._parts = tuple(nn.Parameter(local(weight)) for weight in self._weights)
        self._of = {id(part): weight for part, weight in zip(self._parts, self._weights, strict=True)}
        self._now: Kind | None = None
        self._training = False
        self._saved: Mapping[str, Tensor] | None = None

    @property
    def reference(self) -> PreTrainedModel:
        """The frozen model."""
        return self._models[Kind.REFERENCE]

    @property
    def parts(self) -> tuple[nn.Parameter, ...]:
        """This process's parts, in the order of the model's parameters."""
        return self._parts

    def policy_pass(self) -> None:
        """Have the policy's weights at hand for a pass.

        Raises:
            RuntimeError: a pass with gradient that is not part of an update.
        """
        if torch.is_grad_enabled() and not self._training:
            raise RuntimeError(
                "a policy loaded with shard=True is trained by PPOTrainer.update alone; evaluate it under "
                "torch.no_grad(), or put forward and backward pass inside `with policy.sharding.training_pass(None)`"
            )
        if not self._training:
            self._agree(Kind.POLICY)

    def reference_pass(self) -> None:
        """Have the reference's weights at hand for a pass."""
        self._agree(Kind.REFERENCE)

    @contextmanager
    def training_pass(self, learns: Sequence[nn.Parameter] | None) -> Iterator[None]:
        """See ``Sharding``. Where no part learns (a critic alone does), the pass reads whole weights.

        Raises:
            ProcessLost: a process failed in the pass. The others cannot go on, for they wait for its gradients.
        """
        self._agree(Kind.TRAINING if learns is None else Kind.POLICY)
        self._training = True
        try:
            with _together():
                yield
        finally:
            self._training = False

    def end_passes(self) -> None:
        """See ``Sharding``; no process then holds a whole model."""
        self._agree(Kind.NOTHING)
        for part, weight in zip(self._parts, self._weights, strict=True):
            if weight.grad is not None:
                part.grad, weight.grad = local(weight.grad), None

    def divide_again(self) -> None:
        """Hold no whole model, as its weights are to change. Every process calls it."""
        self._turn_to(Kind.NOTHING)

    def whole(self, tensor: Tensor, part: nn.Parameter) -> Tensor:
        """See ``Sharding``."""
        return whole_on_first(like(self._of[id(part)], tensor))

    def own(self, tensor: Tensor, part: nn.Parameter) -> Tensor:
        """See ``Sharding``."""
        return own_rows(tensor, self._of[id(part)])

    @contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """See ``Sharding``."""
        if self._saved is not None:  # a block inside another one
            yield
            return
        self._agree(Kind.NOTHING)
        whole = {id(weight): whole_on_first(weight) for weight in self._weights}
        state = self._lm.state_dict(keep_vars=True)  # tied weights come with each of their names
        self._saved = {name: whole.get(id(tensor), tensor.detach()) for name, tensor in state.items()}
        try:
            yield
        finally:
            self._saved = None

    def write(self, folder: str | Path) -> None:
        """Write the model as ``save_pretrained`` writes one that is not divided. Every process calls it, unless it is
        inside ``gathered_weights``."""
        with self.gathered_weights(), without_bars():
            if writes():
                self._lm.save_pretrained(folder, state_dict=dict(self._saved or {}))

    def _agree(self, wanted: Kind) -> None:
        """Take part in what other processes want until it is the turn of what is ``wanted`` here."""
        while True:
            now = min(gathered(lambda: int(wanted)))
            with _together():
                self._turn_to(Kind(now))
                if now == Kind.TRAINING and now != wanted:
                    self._empty_pass()
            if now == wanted:
                return

    def _turn_to(self, kind: Kind) -> None:
        """Put the model of this kind together; all others are divided again."""
        if kind == self._now:
            return
        for model in self._models.values():
            reshard(model)
        self._now = kind
        if kind in self._models:
            gather(self._models[kind])

    def _empty_pass(self) -> None:
        """What another process's training pass needs of this one: the same layers, and a gradient of 0."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=self._lm.device)
        with torch.enable_grad(), pass_mode(self._lm, self._checkpointed):
            (self._lm(input_ids=ids, attention_mask=ids + 1, use_cache=False).logits.sum() * 0).backward()


@contextmanager
def _together() -> Iterator[None]:
    """What all processes do together, so that none can repeat it alone, in smaller parts say.

    Raises:
        ProcessLost: it failed.
    """
    try:
        yield
    except ProcessLost:
        raise
    except Exception as error:
        raise ProcessLost(
            f"rank {rank()} of {count()}: {type(error).__name__} in what all processes do together where weights are "
            "divided, so this one ends; the first error above says why. Where memory ran out, lower "
            "PPOConfig.micro_batch_tokens; go on with fit(..., resume=True), with any number of processes"
        ) from error
