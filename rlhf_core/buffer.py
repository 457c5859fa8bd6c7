"""The rollout buffer: experience in, shuffled minibatches with whitened advantages out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.masking import masked_whiten
from rlhf_core.types import Experience, Sequences

TOKEN_FIELDS = ("logprobs", "ref_logprobs", "values", "advantages", "returns")


@dataclass(frozen=True, eq=False, kw_only=True)
class Minibatch:
    """Rows of the buffer; ``advantages`` are scaled over the whole buffer, never over the minibatch."""

    sequences: Sequences
    logprobs: Float[Tensor, "batch response"]
    ref_logprobs: Float[Tensor, "batch response"]
    values: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]
    returns: Float[Tensor, "batch response"]

    def select(self, rows: Int[Tensor, " row"]) -> "Minibatch":
        """The given rows, trimmed to the longest prompt and response among them."""
        sequences = self.sequences.select(rows)
        width, rows = sequences.response_ids.shape[1], rows.to(self.returns.device, non_blocking=True)
        return Minibatch(sequences=sequences, **{name: getattr(self, name)[rows, :width] for name in TOKEN_FIELDS})


class RolloutBuffer:
    """Experience of one or more rollouts, all of it used ``epochs`` times and then thrown away.

    ``scaled`` is what is done to the advantages (batch, response) of everything that was added, given them and the
    response mask: whitening, unless an estimator has a scale of its own.
    """

    def __init__(self, scaled: Callable[[Tensor, Tensor], Tensor] = masked_whiten) -> None:
        self._experience: list[Experience] = []
        self._scaled = scaled

    def __len__(self) -> int:
        """Responses held."""
        return sum(len(part.sequences) for part in self._experience)

    def add(self, experience: Experience) -> None:
        """Append ``experience``; advantages are scaled over everything added."""
        self._experience.append(experience)

    def contents(self) -> Experience:
        """All experience as one batch, advantages unwhitened.

        Raises:
            ValueError: the buffer is empty.
        """
        if not self._experience:
            raise ValueError("RolloutBuffer: nothing was added; call add(experience) before asking for its contents")
        sequences = Sequences.concatenate([part.sequences for part in self._experience])
        width = sequences.response_ids.shape[1]
        tensors = {
            name: torch.cat([_widen(getattr(part, name), width) for part in self._experience]) for name in TOKEN_FIELDS
        }
        return Experience(sequences=sequences, **tensors)

    def minibatches(self, size: int, generator: np.random.Generator) -> Iterator[Minibatch]:
        """Shuffle the rows with ``generator`` and hand them out ``size`` at a time (the last may be smaller). Raises
        ValueError where nothing was added."""
        held = self.contents()
        whole = Minibatch(
            sequences=held.sequences,
            logprobs=held.logprobs,
            ref_logprobs=held.ref_logprobs,
            values=held.values,
            advantages=self._scaled(held.advantages, held.sequences.response_mask),
            returns=held.returns,
        )
        order = torch.from_numpy(generator.permutation(len(self)))
        for start in range(0, len(order), size):
            yield whole.select(order[start : start + size])


def _widen(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))
