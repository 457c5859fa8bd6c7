"""Evidence: what a redistributor needs to know about a response beyond its score.

A request is a frozen, hashable value that names its source and carries its parameters. A *tap* rides on the forward
pass that is made anyway: the model hands it the few attention rows it names, or its hidden states, and it reduces them,
so that no (token, token) map outlives the layer. What needs passes of its own is an ``Experiment``
(:mod:`rlhf_core.probe`). A new method brings its own request; models and engine stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Source = Literal["policy", "reference", "reward"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """Where the tokens of a batch stand in the rows the model is given.

    ``response_positions[i, t]`` is the column of response token t (0 on padding, where ``response_mask`` is False);
    ``read_positions[i]`` the column whose output is of interest: where a reward model pools its score, and, in a
    policy, the column that predicts the last response token. The output that predicts response token t stands at
    ``response_positions[i, t] - 1``.
    """

    response_positions: Int[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    read_positions: Int[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class EvidenceRequest:
    """Base of every request; a model answers it with a float tensor of the shape it states, 0 on padding. ``source``
    says which model is asked: "policy", "reference" or "reward"."""

    source: Source

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """Shape of the answer for ``batch`` responses of ``response`` tokens, padding included; the first axis is the
        batch."""
        return (batch, response)

    def why_not(self, layers: int, heads: int) -> str:
        """Why a model of ``layers`` attention layers with ``heads`` heads each cannot answer; empty if it can."""
        return ""


@dataclass(frozen=True, kw_only=True)
class AttentionTap(EvidenceRequest):
    """Evidence read off one layer's attention weights of the ``source`` (negative ``layer`` counts from the last).

    A tap of your own subclasses this, and says which ``rows`` it reads and how it reduces them; without that, ``rows``
    and ``reduce`` raise TypeError.
    """

    layer: int = -1

    def why_not(self, layers: int, heads: int) -> str:
        """Why a model with ``layers`` attention layers lacks this one; the number of ``heads`` does not matter."""
        return "" if -layers <= self.layer < layers else f"it has attention layers 0 to {layers - 1}, not {self.layer}"

    def rows(self, layout: Layout) -> Int[Tensor, "batch row"]:
        """Query columns whose attention weights are wanted, given the ``layout``; -1 where a row wants fewer."""
        raise TypeError(f"{type(self).__name__} must say which attention rows it reads")

    def reduce(
        self, weights: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], layout: Layout
    ) -> Float[Tensor, "batch response"]:
        """Reduce ``weights`` after softmax (0 where ``rows`` is -1) to one number per response token; ``layout`` says
        where the tokens stand. Called on consecutive chunks of rows, whose results are added up."""
        raise TypeError(f"{type(self).__name__} must say how it reduces attention rows")

    def finish(
        self, total: Float[Tensor, "batch response"], seen_by: Int[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        """The evidence, from the ``total`` over all rows: the total itself, unless a tap says otherwise.

        ``seen_by`` counts the rows asked for that may look at each response token: causality, padding and a sliding
        window of the layer decide, not the weights."""
        return total


@dataclass(frozen=True, kw_only=True)
class ColumnTap(AttentionTap):
    """A tap whose number for a response token depends on the weights placed on that token alone. Where a model allows
    it, weights on other tokens are never computed. ``source`` and ``layer`` as in :class:`AttentionTap`."""

    def of_columns(self, weights: Float[Tensor, "batch head row column"]) -> Float[Tensor, "batch column"]:
        """One number per column, additive over rows; ``weights`` are as ``reduce`` gets them. TypeError unless a tap
        says how."""
        raise TypeError(f"{type(self).__name__} must say what it makes of the weights on one token")

    def reduce(
        self, weights: Float[Tensor, "batch head row key"], rows: Int[Tensor, "batch row"], layout: Layout
    ) -> Float[Tensor, "batch response"]:
        """``of_columns`` of ``weights``, at the response tokens that ``layout`` names; ``rows`` are not used."""
        return on_response(self.of_columns(weights), layout)


def on_response(weights: Float[Tensor, "batch key"], layout: Layout) -> Float[Tensor, "batch response"]:
    """The columns of the response tokens, 0 on padding."""
    return torch.where(layout.response_mask, weights.gather(1, layout.response_positions), 0)


@dataclass(frozen=True, kw_only=True)
class ValueTap(AttentionTap):
    """Evidence read off one layer's attention weights and the value vectors they weight: ``reduce`` gets every weight
    multiplied by the factor of its key."""

    def factors(self, values: Float[Tensor, "batch value_head key channel"]) -> Float[Tensor, "batch value_head key"]:
        """One number per key and head, made of its value vector (float32). Where there are fewer value heads than query
        heads, consecutive query heads share one."""
        raise TypeError(f"{type(self).__name__} must say what it makes of value vectors")


@dataclass(frozen=True, kw_only=True)
class HiddenTap(EvidenceRequest):
    """Evidence read off the last hidden states of a causal reward model, at the states *before* each response token.

    No state knows the token it precedes or anything later, so neither does the evidence: it is causal, and a model
    whose earlier states change with later tokens refuses it. ``source`` is always "reward".
    """

    source: Source = "reward"

    def read(
        self,
        hidden: Float[Tensor, "batch response hidden"],
        score: Callable[[Float[Tensor, "batch response hidden"]], Float[Tensor, "batch response"]],
    ) -> Float[Tensor, "batch response ..."]:
        """Reduce ``hidden[:, t]``, the state that has read the prompt and the tokens before t; ``score`` is the model's
        own head, in raw score units. What stands on padding is thrown away. TypeError unless a tap says how."""
        raise TypeError(f"{type(self).__name__} must say what it reads off hidden states")


@dataclass(frozen=True, kw_only=True)
class PrefixScores(HiddenTap):
    """r(x, y_<t), the raw score of the state before response token t: the score of a response that ends there. Column 0
    is r(x, nothing); r(x, y) itself is ``rollout.raw_scores``. ``source`` is "reward"."""

    def read(
        self,
        hidden: Float[Tensor, "batch response hidden"],
        score: Callable[[Float[Tensor, "batch response hidden"]], Float[Tensor, "batch response"]],
    ) -> Float[Tensor, "batch response"]:
        """``score``, the head, at every state of ``hidden``."""
        return score(hidden)


@dataclass(frozen=True, kw_only=True)
class FullKL(EvidenceRequest):
    """Exact KL(policy || reference) over the vocabulary at every response token, in nats; ``source`` is "policy"."""

    source: Source = "policy"


@dataclass(frozen=True, kw_only=True)
class TokenEntropy(EvidenceRequest):
    """Entropy, in nats, of the distribution each response token was drawn from. The token itself has no part in it."""

    source: Source = "policy"


@dataclass(frozen=True, kw_only=True)
class SentenceEnds(EvidenceRequest):
    """1 on response tokens that, decoded alone, hold one of ``marks``; 0 on others."""

    source: Source = "policy"
    marks: str = ".!?…。！？\n"


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLogprobs(EvidenceRequest):
    """Log-probabilities of the response tokens under a further frozen model that the policy was loaded with, by its
    ``name`` there; in the policy's own distribution (temperature, EOS ban), in nats. One forward pass."""

    name: str
    source: Source = "policy"


@dataclass(frozen=True, kw_only=True)
class ContinuationValues(EvidenceRequest):
    """V(s_t), the mean raw score of ``continuations`` responses that begin with y_<t and go on as the policy does, at
    the states after ``span``, 2 · ``span``, ... response tokens, ``positions`` of them at most.

    The engine measures it (:mod:`rlhf_core.continuations`), with nothing but the policy's ``sample`` and the reward
    model's ``score``, so every policy and every reward can serve it. ``source`` is always "policy".
    """

    span: int
    positions: int
    continuations: int
    source: Source = "policy"

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """(batch, response, 2): the value, and how many tokens were drawn for it; both 0 where none was asked for."""
        return (batch, response, 2)

    def at(self, mask: Bool[Tensor, "batch response"]) -> Bool[Tensor, "batch response"]:
        """The response tokens, which ``mask`` selects, before which a value is asked for."""
        times = torch.arange(mask.shape[1], device=mask.device)
        return mask & (times > 0) & (times % self.span == 0) & (times <= self.span * self.positions)


@dataclass(frozen=True, kw_only=True)
class GreedyScores(EvidenceRequest):
    """Score of the greedy response to each row's prompt, within the row's length limits; normalised as the rollout's
    own scores are. The baseline of ReMax.

    The engine measures it with a rollout (:mod:`rlhf_core.continuations`): one more response per prompt, sampled at
    temperature 0 and scored. ``source`` is always "policy".
    """

    source: Source = "policy"

    def shape(self, batch: int, response: int) -> tuple[int, ...]:
        """(batch,): the rows of one prompt have one score."""
        return (batch,)
