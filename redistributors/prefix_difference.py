"""RED: a token's credit is the change that it makes to the reward model's score of the text so far."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import check_discount, evidence_of, shaped
from redistributors.parts.typed_name import as_typed
from rlhf_core.evidence import EvidenceRequest, PrefixScores
from rlhf_core.masking import last_token
from rlhf_core.types import Rollout

PromptShare = Literal["first", "last", "nowhere"]


@dataclass(frozen=True, kw_only=True)
class PrefixDifference:
    """token_score_t = γ Φ(s_{t+1}) − Φ(s_t), plus the score on the last token; Φ(s_t) = r(x, y_<t), Φ(end) = 0.

    At γ = 1 that is r(x, y_≤t) − r(x, y_<t): RED (Li et al. 2024, "RED: Unleashing token-level rewards from holistic
    feedback via reward redistribution"), which is RUDDER (Arjona-Medina et al. 2019) with the reward model as return
    predictor. Potential-based shaping (Ng, Harada and Russell 1999) of the sparse reward, and so exact for every λ at
    γ = 1, and at other γ in the discounted sense: which response is best does not change.

    The differences sum to the score less the prompt's own share, Φ(s_1) = r(x, nothing). ``prompt_share`` says where
    that goes: on the "first" token, as if Φ(s_1) were 0, which is a potential too (sums to the score at γ = 1); on the
    "last" (sums to the score; as if Φ(s_1) were taken off Φ everywhere, which is shaping at γ = 1 alone); or "nowhere"
    (sums to the score less the share).

    ``gamma`` must be the config's. A bidirectional reward model (BERT) refuses this method.

    Raises:
        ValueError: ``gamma`` outside [0, 1], an unknown ``prompt_share``, or "last" with another gamma than 1.
    """

    gamma: float = 1.0
    prompt_share: PromptShare = "first"
    causal: ClassVar[bool] = True
    shaping: ClassVar[bool] = True
    needs: ClassVar[frozenset[EvidenceRequest]] = frozenset({PrefixScores()})
    __str__ = as_typed

    def __post_init__(self) -> None:
        check_discount(self.gamma, "PrefixDifference")
        if self.prompt_share == "last" and self.gamma != 1:
            raise ValueError(
                f"PrefixDifference: prompt_share 'last' is shaping only at gamma 1, got gamma {self.gamma!r}; place "
                "it 'first' or 'nowhere'"
            )
        if self.prompt_share not in get_args(PromptShare):
            raise ValueError(
                f"PrefixDifference: prompt_share must be one of {', '.join(get_args(PromptShare))}, "
                f"got {self.prompt_share!r}"
            )

    @property
    def conserving(self) -> bool:
        """Undiscounted, and unless the prompt's share is left out."""
        return self.gamma == 1 and self.prompt_share != "nowhere"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "batch response"]:
        """Token scores (batch, response), in score units."""
        mask = rollout.sequences.response_mask
        potential = rollout.score_scale * evidence_of(rollout, PrefixScores(), "PrefixDifference")
        of_prompt, end = potential[:, :1], rollout.scores[:, None]
        if self.prompt_share == "first":
            potential = torch.cat([torch.zeros_like(of_prompt), potential[:, 1:]], dim=1)
        elif self.prompt_share == "last":
            end = end + of_prompt
        token_scores = shaped(potential, mask, gamma=self.gamma) + end * last_token(mask)
        return token_scores.masked_fill(~mask, 0).detach()
