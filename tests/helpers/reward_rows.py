"""What tests of reward models share: rows to score, a tap of its own, a recurrent classifier."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    MambaConfig,
    MambaModel,
    MambaPreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from models.tiny import EOS_ID
from rlhf_core.evidence import AttentionTap, Layout
from rlhf_core.types import Sequences

ROWS = [([5, 6, 7], [8, 9, EOS_ID]), ([10], [11]), ([12, 13], [14, 15, 16, 17, 18, EOS_ID]), ([3, 4, 3, 4], [EOS_ID])]


@dataclass(frozen=True, kw_only=True)
class ReadRow(AttentionTap):
    """The row at the read position, mean over heads."""

    source: str = "reward"

    def rows(self, layout: Layout) -> Tensor:
        return layout.read_positions[:, None]

    def reduce(self, weights: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        return weights.sum(2).mean(1).gather(1, layout.response_positions)


def sequences(rows: list[tuple[list[int], list[int]]], *, pad: int = 2, extra: int = 0) -> Sequences:
    """Rows as a batch, with ``pad`` on padding and ``extra`` columns of it on either side."""
    prompt = max(len(p) for p, _ in rows) + extra
    response = max(len(r) for _, r in rows) + extra
    lengths = torch.tensor([len(r) for _, r in rows])
    return Sequences(
        prompt_ids=torch.tensor([[pad] * (prompt - len(p)) + p for p, _ in rows]),
        prompt_mask=torch.arange(prompt) >= prompt - torch.tensor([len(p) for p, _ in rows])[:, None],
        response_ids=torch.tensor([r + [pad] * (response - len(r)) for _, r in rows]),
        response_mask=torch.arange(response) < lengths[:, None],
        min_lengths=torch.ones_like(lengths),
        max_lengths=lengths,
        finished=torch.ones_like(lengths, dtype=torch.bool),
    )


class MambaClassifier(MambaPreTrainedModel):  # type: ignore[misc]
    """A classifier without any attention; transformers has none for Mamba."""

    base_model_prefix = "backbone"

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(config)
        self.backbone = MambaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden)[:, -1])
