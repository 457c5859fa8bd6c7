"""Monte Carlo: a span's credit is how much it changes the score that the policy would reach from there."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from redistributors.parts.credit import evidence_of, shaped
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import ContinuationValues, EvidenceRequest
from rlhf_core.masking import last_token
from rlhf_core.types import Rollout


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """token_score_t = Φ(s_{t+1}) − Φ(s_t), plus the score on the last token. Φ(s_t) = score_scale · V(s_p), where p is
    the last position up to t, and V(s_p) the mean raw score of ``continuations`` responses that begin with y_<p and go
    on as the current policy does: the value estimate of VinePPO (Kazemnejad et al. 2024, "VinePPO: Refining credit
    assignment in RL training of LLMs", arXiv 2410.01679).

    Positions: after every ``span`` tokens, at most ``positions`` of them; what follows the last is one span. They do
    not depend on the response, so no token's score depends on later ones. Between two positions Φ stands still, and a
    span's credit is on its last token.

    Start and end: Φ is 0 before the first position, so the first span gets all of V at its end, the prompt's share
    included, and nothing is drawn from the prompt alone. After the last token stands the score itself. So a row sums to
    the score. VinePPO takes steps of reasoning for spans, gives every token of a step the step's advantage, and
    subtracts V of the prompt; here the critic learns that.

    Potential-based shaping (Ng, Harada and Russell 1999), with few continuations too: the seed and the prompt fix their
    random numbers, so equal states have equal values. They are a stream of their own, so responses are the same as
    under any other method.

    Cost: at most ``positions`` · ``continuations`` further responses, each sampled from its position on and scored.
    Every reward works.

    Raises:
        ValueError: ``span``, ``positions`` or ``continuations`` is no whole number from 1 on.
    """

    span: int = 5
    positions: int = 8
    continuations: int = 4
    causal: ClassVar[bool] = True
    shaping: ClassVar[bool] = True
    conserving: ClassVar[bool] = True
    __str__ = as_typed

    def __post_init__(self) -> None:
        for name in ("span", "positions", "continuations"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"MonteCarlo: {name} must be a whole number from 1 on, got {value!r}")

    @property
    def request(self) -> ContinuationValues:
        """The evidence this method reads."""
        return ContinuationValues(span=self.span, positions=self.positions, continuations=self.continuations)

    @property
    def needs(self) -> frozenset[EvidenceRequest]:
        """Values of some states, from continuations."""
        return frozenset({self.request})

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        values = evidence_of(rollout, self.request, "MonteCarlo")[..., 0]
        potential = rollout.score_scale * held(values, self.request.at(mask))
        token_scores = shaped(potential, mask, gamma=1.0) + rollout.scores[:, None] * last_token(mask)
        return token_scores.masked_fill(~mask, 0).detach()

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """``continuations``: further responses that were sampled and scored for each response;
        ``continuation_tokens``: the tokens drawn for them; means over responses."""
        mask = rollout.sequences.response_mask
        tokens = evidence_of(rollout, self.request, "MonteCarlo")[..., 1].masked_fill(~mask, 0)
        return {
            "continuations": self.continuations * float(self.request.at(mask).sum(1).float().mean()),
            "continuation_tokens": float(tokens.sum(1).mean()),
        }


def held(
    values: Float[Tensor, "batch response"], at: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """The value of the last place before or on each token where ``at`` is True, 0 before the first."""
    times = torch.where(at, torch.arange(at.shape[1], device=at.device), -1).cummax(1).values
    return torch.where(times >= 0, values.gather(1, times.clamp(min=0)), 0)
