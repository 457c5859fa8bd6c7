"""Attention in general: choose layers and heads, how to read them, and how to treat attention sinks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from redistributors.parts.attention_readings import READINGS
from redistributors.parts.attention_requests import Heads, MaxHeads, MeanHeads, OneHead
from redistributors.parts.credit import (
    as_weights,
    check_beta,
    check_layer,
    evidence_of,
    fallback_fraction,
    normalised,
    spread,
)
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Rollout

HEADS: Mapping[str, Callable[[], Heads]] = MappingProxyType({"mean": MeanHeads, "max": MaxHeads})


@dataclass(frozen=True, kw_only=True)
class Attention:
    """credit_t ∝ weight_t, what a reading of the reward model's attention gives response token t. Sums to the score.

    All readings use the row of the position the score is read from, restricted to the response and renormalised. So
    weight on the prompt, and on a BOS in front of it, is dropped.

    ``reading``: "row", α (with the defaults this is ABC, Chan et al. 2024, to the bit); "value_norms", α‖v‖ (after
    Kobayashi et al. 2020); "rollout", the product over layers of ½ A + ½ I (Abnar and Zuidema 2020), which needs
    ``layers="all"`` or several; "gradient", A ⊙ ∂r/∂A (Chefer et al. 2021), of which only the part with the sign of the
    score is kept.

    ``layers``: one number, several, whose weights are averaged, or "all" (rollout and gradient only).
    ``heads``: "mean", "max", or the index of one head; reduced within each layer, before anything else but the norms
    and the gradients' positive part.
    ``sinks``: this many first tokens of a response get nothing. ``floor``: this many times the mean weight of the other
    tokens is subtracted from each of them, and negative results become 0. If nothing is left, the last token gets all.
    ``beta``: the share of the score that follows the weights; the rest stays on the last token.

    Cost: row and value norms are read from the scoring pass; rollout takes a forward pass under eager attention,
    gradient a forward and a backward pass, with the maps of all layers of a micro-batch in memory.

    Raises:
        ValueError: a setting of another kind, or out of its range.
    """

    reading: str = "row"
    layers: int | list[int] | tuple[int, ...] | Literal["all"] = -1
    heads: str | int = "mean"
    sinks: int = 0
    floor: float = 0.0
    beta: float = 0.8
    causal: ClassVar[bool] = False
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_beta(self.beta, "Attention")
        if self.reading not in list(READINGS):
            raise ValueError(f"Attention: reading must be one of {', '.join(READINGS)}, got {self.reading!r}")
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        if isinstance(self.heads, bool) or not (isinstance(self.heads, int) or self.heads in list(HEADS)):
            raise ValueError(f"Attention: heads must be {', '.join(HEADS)} or a head's index, got {self.heads!r}")
        if isinstance(self.sinks, bool) or not isinstance(self.sinks, int) or self.sinks < 0:
            raise ValueError(f"Attention: sinks is a number of first response tokens, 0 or more, got {self.sinks!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, int | float) or not 0 <= self.floor < math.inf:
            raise ValueError(f"Attention: floor is a multiple of the mean weight, 0 or more, got {self.floor!r}")
        try:
            self.needs  # noqa: B018
        except ValueError as error:
            raise ValueError(f"Attention(reading={self.reading!r}): {error}") from error

    @property
    def requests(self) -> tuple[EvidenceRequest, ...]:
        """The evidence whose mean this method uses: one request per layer, or one for all layers."""
        heads = OneHead(self.heads) if isinstance(self.heads, int) else HEADS[self.heads]()
        return READINGS[self.reading].requests(_checked_layers(self.layers), heads)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Attention rows of the scoring pass, or an experiment."""
        return frozenset(self.requests)

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        return spread(rollout.scores, normalised(self.weights(rollout), mask), mask, beta=self.beta)

    def weights(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """The weights that credit is proportional to, (batch, response): the mean over requests, without sinks and
        floor.

        Raises:
            ValueError: evidence that is missing, negative or not finite.
        """
        mask, of = rollout.sequences.response_mask, READINGS[self.reading].weights
        read = [of(evidence_of(rollout, request, "Attention"), rollout) for request in self.requests]
        mean = torch.stack([as_weights(weights, mask) for weights in read]).mean(0)
        kept = mask & (torch.arange(mask.shape[1], device=mask.device) >= self.sinks)
        return above_floor(torch.where(kept, mean, 0), kept, self.floor)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_fallback``: share of responses without any weight left on themselves (credit: last token)."""
        return {"credit_fallback": fallback_fraction(self.weights(rollout), rollout.sequences.response_mask)}


def above_floor(
    weights: Float[Tensor, "batch response"], kept: Bool[Tensor, "batch response"], floor: float
) -> Float[Tensor, "batch response"]:
    """max(0, w_t − floor · mean of w over the tokens kept); 0 on the others."""
    # divided first, so that the sum of weights as large as float32 goes does not overflow
    mean = (weights / kept.sum(1, keepdim=True).clamp(min=1)).sum(1, keepdim=True)
    return torch.where(kept, (weights - floor * mean).clamp(min=0), 0)


def _checked_layers(layers: object) -> tuple[int, ...] | Literal["all"]:
    if layers == "all":
        return "all"
    named = tuple(layers) if isinstance(layers, list | tuple) else (layers,)
    for layer in named:
        check_layer(layer, "Attention")
    if not named or len(set(named)) < len(named):
        raise ValueError(f"Attention: layers must name at least one layer, and none twice, got {layers!r}")
    return named
