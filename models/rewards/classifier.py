"""A sequence classifier as a scoring function: network, head, score, and the null token."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.rewards.classifier_head import Head
from models.rewards.score_kinds import Score
from rlhf_core.evidence import HiddenTap

NULL_TOKENS = ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id")
WITHOUT_NULL = {"absent": 'absent="delete"', "baseline": 'baseline="zero"'}
Setting = Literal["absent", "baseline"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier:
    """The parts of a reward model that a probe needs."""

    model: PreTrainedModel
    head: Head
    score: Score
    null_id: int | None
    """The null token, if the tokenizer has one."""

    @property
    def name(self) -> str:
        """The model's class."""
        return type(self.model).__name__

    def scores(
        self, hidden: Float[Tensor, "row position hidden"], read: Bool[Tensor, "row position"]
    ) -> Float[Tensor, " row"]:
        """Raw scores of last hidden states of right-padded rows; ``read`` is the head's ``read_part`` of them."""
        return self.score.of(self.head.logits(hidden, read))

    def read_states(
        self,
        tap: HiddenTap,
        hidden: Float[Tensor, "batch position hidden"],
        input_ids: Int[Tensor, "batch position"],
        response_positions: Int[Tensor, "batch response"],
        response_mask: Bool[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response ..."]:
        """``tap`` answered from the states that a text is read at that ends before each response token; 0 on
        padding."""
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        before = hidden[row, self.head.ends(input_ids).gather(1, (response_positions - 1).clamp(min=0))]
        answer = tap.read(before, self._scores_alone)
        outside = ~response_mask.reshape(*response_mask.shape, *(1 for _ in answer.shape[2:]))
        return answer.masked_fill(outside, 0)

    def _scores_alone(self, states: Float[Tensor, "batch response hidden"]) -> Float[Tensor, "batch response"]:
        """The score of each state, as if it were the last of its own row."""
        alone = rearrange(states, "batch response hidden -> (batch response) 1 hidden")
        read = torch.ones(alone.shape[:2], dtype=torch.bool, device=alone.device)
        return self.scores(alone, read).reshape(states.shape[:2])


def null_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The null token, which replaces a removed token: the mask token, or else padding, unknown, EOS."""
    found = (getattr(tokenizer, name, None) for name in NULL_TOKENS)
    return next((token for token in found if token is not None), None)


def why_not_null(name: str, null_id: int | None, setting: Setting) -> str:
    """Why the model called ``name`` has no null token, and which value of the method's ``setting`` needs none; empty if
    it has one."""
    if null_id is not None:
        return ""
    return f"{name}: its tokenizer has no null token (mask, padding, unknown or EOS); use {WITHOUT_NULL[setting]}"


def require_null(name: str, null_id: int | None, setting: Setting) -> int:
    """The null token's id; raises ValueError if there is none, with the reason of :func:`why_not_null`."""
    if null_id is None:
        raise ValueError(why_not_null(name, null_id, setting))
    return null_id
