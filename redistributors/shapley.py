"""Shapley: a span's credit is what it adds to the score, averaged over all orders of adding the spans."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import comb
from typing import ClassVar, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from redistributors.parts.credit import Residual, check_residual, evidence_of, signed, unattributed
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest, Source
from rlhf_core.probe import Ability, Absence, Experiment, Probe, Variants, generators
from rlhf_core.types import Rollout

Split = Literal["equal", "owen"]
LARGEST = 16
"""Spans whose coalitions may be enumerated at most: 65536 passes per response."""


@dataclass(frozen=True, kw_only=True)
class ShapleyValues(Experiment):
    """What each token's span adds to the score, divided within the span; raw score units (batch, response).

    The settings are those of :class:`Shapley`. Whatever they are, a row sums to r(x, y) − r(x, nothing).
    """

    source: Source = "reward"
    players: int
    split: Split
    absent: Absence
    exact_up_to: int
    permutations: int

    @property
    def uses(self) -> frozenset[Ability]:  # type: ignore[override]
        """Scores of responses without some spans, removed or replaced."""
        return frozenset({self.absent})

    def measure(self, probe: Probe) -> Float[Tensor, "batch response"]:
        """Enumerates the responses it can, and samples orders for the others."""
        mask = probe.sequences.response_mask
        lengths, spans = mask.sum(1), spans_of(mask, self.players)
        enumerable = (lengths.clamp(max=self.players) <= self.exact_up_to) & (
            (lengths <= self.players) | (self.split == "equal")
        )
        values = torch.zeros(mask.shape, device=mask.device)
        if bool(enumerable.any()):
            some = spans.masked_fill(~enumerable[:, None], -1)
            values = values + enumerated(probe, some, min(self.players, self.exact_up_to), self.absent)
        if not bool(enumerable.all()):
            ranks = self._ranks(probe, spans).masked_fill(enumerable[:, None, None], -1)
            values = values + averaged(probe, ranks, self.absent)
        return values

    def _ranks(self, probe: Probe, spans: Int[Tensor, "batch response"]) -> Int[Tensor, "batch order response"]:
        """The rank of each token in every order drawn; -1 on padding."""
        ranks = torch.full((len(spans), self.permutations, spans.shape[1]), -1)
        for row, generator in enumerate(generators("shapley", probe.sequences)):
            own = spans[row][spans[row] >= 0].cpu()
            drawn = torch.stack([RANKS[self.split](own, generator) for _ in range(self.permutations // 2)])
            ranks[row, :, : len(own)] = torch.cat([drawn, drawn.max() - drawn])
        return ranks.to(spans.device)


@dataclass(frozen=True, kw_only=True)
class Shapley:
    """token_score_t = φ of the token's span, divided within the span, times the score's scale; sums to the score.

    φ_i = Σ_{S ∌ i} s! (n − s − 1)! / n! · (v(S ∪ {i}) − v(S)), s spans in S, with v(S) = r(x, the response with the
    spans in S only) (Shapley 1953). The φ sum to r(x, y) − r(x, nothing); ``residual`` says where the rest of the score
    goes. SCAR (Cao et al. 2025) is the same idea for RLHF.

    ``players``: the largest number of spans per response, contiguous and as equal as possible; a shorter response has
    one span per token. ``split``: each token gets an "equal" part of its span's φ, or its own value in the game in
    which the tokens of a span are added one after the other and other spans as a whole ("owen": Owen 1977). ``absent``:
    spans that are left out are removed ("delete", which any callable can score too), or become the null token
    ("replace").

    Up to ``exact_up_to`` spans all coalitions are enumerated; Owen's split only where every token is a span. Elsewhere
    φ is the mean over ``permutations`` orders (Castro, Gómez and Tejada 2009), drawn in pairs of an order and its
    reverse (Mitchell et al. 2022); every order adds up to r(x, y) − r(x, nothing), so the mean does too.

    Cost in forward passes per response of T tokens, n = min(players, T): 2ⁿ, 64 as it stands; where orders are drawn,
    permutations · (n − 1) + 2, with Owen's split permutations · (T − 1) + 2. None backward.

    Raises:
        ValueError: a setting of another kind, or out of its range; an odd number of ``permutations``.
    """

    players: int = 6
    split: Split = "equal"
    absent: Absence = "delete"
    exact_up_to: int = 10
    permutations: int = 8
    residual: Residual = "last"
    causal: ClassVar[bool] = False
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_residual(self.residual, "Shapley")
        for name, known in (("split", get_args(Split)), ("absent", get_args(Absence))):
            if getattr(self, name) not in list(known):
                raise ValueError(f"Shapley: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if type(self.players) is not int or self.players < 1:
            raise ValueError(f"Shapley: players is a number of spans, at least 1, got {self.players!r}")
        if type(self.exact_up_to) is not int or not 0 <= self.exact_up_to <= LARGEST:
            raise ValueError(
                f"Shapley: exact_up_to is a number of spans from 0 to {LARGEST}, as n spans cost 2ⁿ passes per "
                f"response, got {self.exact_up_to!r}"
            )
        if type(self.permutations) is not int or self.permutations < 2 or self.permutations % 2:
            raise ValueError(
                "Shapley: permutations is an even number, an order and its reverse for every pair, "
                f"got {self.permutations!r}"
            )

    @property
    def request(self) -> ShapleyValues:
        """The evidence this method reads."""
        return ShapleyValues(
            players=self.players,
            split=self.split,
            absent=self.absent,
            exact_up_to=self.exact_up_to,
            permutations=self.permutations,
        )

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Scores of responses that lack some of their spans."""
        return frozenset({self.request})

    @property
    def conserving(self) -> bool:
        """True unless the score of the empty response is left out."""
        return self.residual != "nowhere"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        return signed(evidence_of(rollout, self.request, "Shapley"), rollout, residual=self.residual)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``credit_residual``: mean of abs(score − what is attributed), score units."""
        return {"credit_residual": unattributed(evidence_of(rollout, self.request, "Shapley"), rollout)}


def spans_of(mask: Bool[Tensor, "batch response"], players: int) -> Int[Tensor, "batch response"]:
    """The number of each token's span, from 0, of at most ``players`` contiguous spans per row; -1 on padding.

    Token t of T is in span ⌊t · n / T⌋, n = min(players, T): lengths differ by one at most, and no span is empty.
    """
    lengths = mask.sum(1, keepdim=True)
    tokens = torch.arange(mask.shape[1], device=mask.device)
    return (tokens * lengths.clamp(max=players) // lengths).masked_fill(~mask, -1)


def enumerated(
    probe: Probe, spans: Int[Tensor, "batch response"], players: int, absent: Absence
) -> Float[Tensor, "batch response"]:
    """Shapley values from the scores of all coalitions (Shapley 1953), in equal parts on the tokens of each span; 0
    where ``spans`` is -1, which always stands. Spans that a row lacks add nothing, and so change no other's value."""
    coalitions = ((torch.arange(2**players)[:, None] >> torch.arange(players)) & 1).bool().to(spans.device)
    always = torch.ones(len(coalitions), 1, dtype=torch.bool, device=spans.device)
    keep = rearrange(torch.cat([coalitions, always], dim=1)[:, spans], "coalition batch token -> batch coalition token")
    scores = probe.scores(Variants(keep=keep, absent=absent))
    weights = 1 / (players * torch.tensor([comb(players - 1, size) for size in range(players)])).to(scores)
    others = coalitions.sum(1, keepdim=True) - coalitions.long()  # the coalition's size without player i
    signs = torch.where(coalitions, 1, -1)
    values = scores @ (signs * weights[others.clamp(max=players - 1)])
    return _shared(values, spans)


def averaged(
    probe: Probe, ranks: Int[Tensor, "batch order response"], absent: Absence
) -> Float[Tensor, "batch response"]:
    """Mean over orders of what each rank adds to the score when it comes in after all lower ones, in equal parts on the
    tokens that have it (Castro, Gómez and Tejada 2009); 0 where a rank is -1, which always stands."""
    steps = torch.arange(int(ranks.max()) + 2, device=ranks.device)
    keep = rearrange(ranks[:, :, None] < steps[:, None], "batch order step response -> batch (order step) response")
    scores = probe.scores(Variants(keep=keep, absent=absent))
    gains = rearrange(scores, "batch (order step) -> order batch step", order=ranks.shape[1]).diff(dim=2)
    shares = [_shared(gain, parts) for gain, parts in zip(gains, ranks.unbind(1), strict=True)]
    return torch.stack(shares).mean(0)


def _shared(
    values: Float[Tensor, "batch part"], parts: Int[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """The value of each token's part divided by the number of its tokens; 0 where the part is -1."""
    sizes = (parts[:, :, None] == parts[:, None]).sum(2)
    return (values.gather(1, parts.clamp(min=0)) / sizes).masked_fill(parts < 0, 0)


def span_ranks(spans: Int[Tensor, " response"], generator: torch.Generator) -> Int[Tensor, " response"]:
    """A random order of spans: every token of a span has its rank."""
    return torch.randperm(int(spans.max()) + 1, generator=generator)[spans]


def token_ranks(spans: Int[Tensor, " response"], generator: torch.Generator) -> Int[Tensor, " response"]:
    """A random order of tokens in which those of a span follow one another (Owen 1977)."""
    shuffled = torch.randperm(len(spans), generator=generator)
    order = shuffled[torch.argsort(span_ranks(spans, generator)[shuffled], stable=True)]
    return torch.argsort(order)


RANKS: Mapping[Split, Callable[[Tensor, torch.Generator], Tensor]] = {"equal": span_ranks, "owen": token_ranks}
