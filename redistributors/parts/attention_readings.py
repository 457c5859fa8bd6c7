"""Ways to read attention: one row, a rollout through layers, a row times its gradient, or weighted value norms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from redistributors.parts.attention_requests import AttentionRow, Heads, ValueRow
from rlhf_core.evidence import EvidenceRequest, on_response
from rlhf_core.probe import AttentionMaps, Experiment, MapGradients, Probe
from rlhf_core.types import Rollout

Layers = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class RolloutRow(Experiment):
    """The row of the position the score is read from, of the attention rollout through the layers named."""

    source: Literal["reward"] = "reward"
    layers: Layers
    heads: Heads
    uses = frozenset({"attention"})

    def why_not(self, layers: int, heads: int) -> str:
        """It lacks a layer or the head."""
        return _no_such_layers(self.layers, layers) or self.heads.why_not(heads)

    def measure(self, probe: Probe) -> Float[Tensor, "batch response"]:
        """One pass under eager attention."""
        return probe.attention(self.reduce)

    def reduce(self, maps: AttentionMaps) -> Float[Tensor, "batch response"]:
        """Weights that, prompt included, sum to 1."""
        reduced = [self.heads(maps.weights[layer]) for layer in chosen(self.layers, len(maps.weights))]
        return on_response(rollout_row(reduced, maps.layout.read_positions), maps.layout)


@dataclass(frozen=True, kw_only=True)
class GradientRow(Experiment):
    """The row of the position the score is read from, of attention times the raw score's gradient: what raises the
    score, and what lowers it, each as a non-negative weight; mean over the layers named."""

    source: Literal["reward"] = "reward"
    layers: Layers
    heads: Heads
    uses = frozenset({"attention_gradients"})

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """(batch, response, 2)."""
        return (batch, response, 2)

    def why_not(self, layers: int, heads: int) -> str:
        """It lacks a layer or the head."""
        return _no_such_layers(self.layers, layers) or self.heads.why_not(heads)

    def measure(self, probe: Probe) -> Float[Tensor, "batch response side"]:
        """One forward and one backward pass under eager attention."""
        return probe.attention_gradients(self.reduce)

    def reduce(self, found: MapGradients) -> Float[Tensor, "batch response side"]:
        """(A ⊙ ∂r/∂A)⁺ and (−A ⊙ ∂r/∂A)⁺ on each response token, heads reduced."""
        layout = found.maps.layout
        sides: list[Tensor] = []
        for sign in (1, -1):
            of_layers = [
                gradient_row(
                    found.maps.weights[layer], sign * found.gradients[layer], self.heads, layout.read_positions
                )
                for layer in chosen(self.layers, len(found.gradients))
            ]
            sides.append(on_response(torch.stack(of_layers).mean(0), layout))
        return torch.stack(sides, dim=-1)


def rollout_row(
    maps: Sequence[Float[Tensor, "batch query key"]], read: Int[Tensor, " batch"]
) -> Float[Tensor, "batch key"]:
    """Row ``read`` of Â_L ⋯ Â_1, Â = ½ A + ½ I (Abnar and Zuidema 2020, "Quantifying attention flow in transformers",
    eq. 1); ``maps`` from the first layer to the last, one head each.

    Rows of A are divided by their sum first, which is 1 but where heads were reduced by their maximum.
    """
    row = torch.nn.functional.one_hot(read, maps[-1].shape[-1]).to(maps[-1].dtype)
    for attention in reversed(maps):
        totals = attention.sum(-1, keepdim=True)
        distribution = attention / torch.where(totals > 0, totals, 1)
        row = 0.5 * (row[:, None] @ distribution)[:, 0] + 0.5 * row
    return row


def gradient_row(
    weights: Float[Tensor, "batch head query key"],
    gradients: Float[Tensor, "batch head query key"],
    heads: Heads,
    read: Int[Tensor, " batch"],
) -> Float[Tensor, "batch key"]:
    """Row ``read`` of heads((A ⊙ ∂r/∂A)⁺), one layer by itself: Ā of Chefer, Gur and Wolf 2021 ("Generic
    attention-model explainability", eq. 5), whose propagation through layers is left out, as in Grad-SAM (Barkan et
    al. 2021)."""
    batch = torch.arange(len(read), device=read.device)
    return heads((weights[batch, :, read] * gradients[batch, :, read]).clamp(min=0))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What to request, and how to turn each answer into weights; weights of several requests are averaged."""

    requests: Callable[[Layers, Heads], tuple[EvidenceRequest, ...]]
    weights: Callable[[Float[Tensor, "batch response ..."], Rollout], Float[Tensor, "batch response"]]


def _as_measured(evidence: Float[Tensor, "batch response"], rollout: Rollout) -> Float[Tensor, "batch response"]:
    return evidence


def _toward_the_score(
    evidence: Float[Tensor, "batch response side"], rollout: Rollout
) -> Float[Tensor, "batch response"]:
    """The weights that raise a positive score, or lower a negative one."""
    return torch.where(rollout.scores[:, None] >= 0, evidence[..., 0], evidence[..., 1])


def _a_row_of_each(tap: type[AttentionRow] | type[ValueRow]) -> Callable[[Layers, Heads], tuple[EvidenceRequest, ...]]:
    def requests(layers: Layers, heads: Heads) -> tuple[EvidenceRequest, ...]:
        if isinstance(layers, str):
            raise ValueError("a row is read off layers named by number, such as layers=[-1, -2], not layers='all'")
        return tuple(tap(source="reward", layer=layer, heads=heads) for layer in layers)

    return requests


def _rollout(layers: Layers, heads: Heads) -> tuple[EvidenceRequest, ...]:
    if len(layers) < 2:
        raise ValueError(f"a rollout multiplies the maps of several layers; write layers='all' instead of {layers}")
    return (RolloutRow(layers=layers, heads=heads),)


def _gradient(layers: Layers, heads: Heads) -> tuple[EvidenceRequest, ...]:
    return (GradientRow(layers=layers, heads=heads),)


READINGS: Mapping[str, Reading] = MappingProxyType(
    {
        "row": Reading(requests=_a_row_of_each(AttentionRow), weights=_as_measured),
        "value_norms": Reading(requests=_a_row_of_each(ValueRow), weights=_as_measured),
        "rollout": Reading(requests=_rollout, weights=_as_measured),
        "gradient": Reading(requests=_gradient, weights=_toward_the_score),
    }
)
"""What ``Attention`` can read, by name."""


def chosen(layers: Layers, number: int) -> list[int]:
    """The named layers of ``number``, counted from the first and in the order they run."""
    return list(range(number)) if isinstance(layers, str) else sorted(layer % number for layer in layers)


def _no_such_layers(layers: Layers, number: int) -> str:
    """Why a model with ``number`` layers lacks the named ones; empty if it has them."""
    if isinstance(layers, str):
        return ""
    beyond = [layer for layer in layers if not -number <= layer < number]
    if beyond:
        return f"it has attention layers 0 to {number - 1}, not {', '.join(map(str, beyond))}"
    twice = len({layer % number for layer in layers}) < len(layers)
    return f"of its {number} attention layers {layers} names one twice" if twice else ""
