"""Reading a sequence classifier at an explicit position, with its own head.

transformers pools by looking for the pad id, ignores the attention mask, and reads the token before EOS where pad and
EOS share an id. Here the backbone runs, one hidden state a row is picked by index, and the head is applied to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.switches import beside_switches, within_reach

HEAD_NAMES = ("score", "classifier", "pooler")


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """A classification head: the token it reads (decoders the last, EOS included; encoders the first, [CLS]), and the
    logits it makes of that token's last hidden state."""

    reads: Literal["last", "first"]
    apply: Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch label"]]

    def positions(self, attention_mask: Bool[Tensor, "batch position"]) -> Int[Tensor, " batch"]:
        """Column each right-padded row is read at."""
        last = attention_mask.sum(1) - 1
        return last if self.reads == "last" else torch.zeros_like(last)


def find_head(model: PreTrainedModel) -> Head:
    """The head of a transformers ``...ForSequenceClassification`` model.

    Raises:
        ValueError: none of the known forms; the message names the class and what is supported.
    """
    score, classifier = getattr(model, "score", None), getattr(model, "classifier", None)
    pooler = getattr(model.base_model, "pooler", None)
    if isinstance(score, nn.Module):
        return Head(reads="last", apply=score)
    # ALBERT's pooler is a bare layer whose activation stands elsewhere
    if isinstance(classifier, nn.Linear) and isinstance(pooler, nn.Module) and not isinstance(pooler, nn.Linear):
        return Head(reads="first", apply=lambda hidden: classifier(pooler(hidden[:, None])))
    if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.Linear):
        return Head(reads="first", apply=lambda hidden: classifier(hidden[:, None]))
    raise ValueError(
        f"{type(model).__name__}: cannot find its classification head. Supported: a `score` layer on the last token "
        "(GPT-2, Llama and most decoders), a `pooler` and `classifier` (BERT) or a `classifier` module (RoBERTa) on "
        "the first"
    )


def last_hidden(
    model: PreTrainedModel, attention_mask: Bool[Tensor, "batch position"], **inputs: Tensor
) -> Float[Tensor, "batch position hidden"]:
    """Last hidden states of right-padded rows, given as ``input_ids`` or ``inputs_embeds``, with gradient where
    enabled; what stands on padding has no meaning."""
    output = model.base_model(**inputs, attention_mask=attention_mask.long(), use_cache=False, return_dict=True)
    hidden: Tensor = output.last_hidden_state
    return hidden


def pooled_logits(
    head: Head, hidden: Float[Tensor, "batch position hidden"], attention_mask: Bool[Tensor, "batch position"]
) -> Float[Tensor, "batch label"]:
    """The head at the position it reads."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return head.apply(hidden[rows, head.positions(attention_mask)])


def read_logits(
    model: PreTrainedModel,
    head: Head,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"],
) -> Float[Tensor, "batch label"]:
    """Logits of right-padded rows, with gradient where enabled."""
    return pooled_logits(head, last_hidden(model, attention_mask, input_ids=input_ids), attention_mask)


@torch.no_grad()
def why_not_causal(model: PreTrainedModel, head: Head) -> str:
    """Why the model has no score of a beginning without reading on, in words; empty where it has.

    Found out by exchanging the last of nine tokens: the states before it must not move.
    """
    if head.reads != "last":
        return "it reads its score at the first token, which sees the whole text"
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(9, device=model.device).repeat(2, 1) % size
    ids[1, -1] = (ids[0, -1] + 1) % size
    hidden = last_hidden(model, torch.ones_like(ids, dtype=torch.bool), input_ids=ids)[:, :-1].float()
    moved = float((hidden[0] - hidden[1]).norm() / hidden.norm().clamp(min=1e-6))
    exact = model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    if moved <= (1e-5 if exact else 5e-2):
        return ""
    return f"its states before a token move with that token (by {moved:.1e} of their 2-norm): it is not causal"


@torch.no_grad()
def require_own_logits(model: PreTrainedModel, head: Head, tolerance: float) -> None:
    """On one row without padding, where its pooling is right, transformers must give the same logits.

    Raises:
        ValueError: it does not, so the head is applied wrongly; by how much (relative to the largest logit).
    """
    # ids that differ, none of them one that the model may take for padding
    text = model.config.get_text_config()
    tokens = [token for token in range(min(8, text.vocab_size)) if token != text.pad_token_id]
    ids = torch.tensor([tokens], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    ours = read_logits(model, head, ids, mask).float()
    theirs = model(input_ids=ids, attention_mask=mask.long()).logits.float()
    same_shape = ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)) if same_shape else float("inf")
    if not difference <= tolerance:
        raise ValueError(
            f"{type(model).__name__}: its head, applied to the {head.reads} token's hidden state, differs from its own "
            f"forward pass by {difference:.1e} of the largest logit; it is not supported as a reward model"
        )
    require_same_alone(model, head, tokens, tolerance)


def require_same_alone(model: PreTrainedModel, head: Head, tokens: Sequence[int], tolerance: float) -> None:
    """A row's logits must be the same alone and beside a row of another length, on both sides of every switch that the
    config names (see :mod:`models.switches`).

    Raises:
        ValueError: they are not; by how much (relative to the largest logit).
    """
    for lengths in beside_switches(model):
        _compare_alone(model, head, tokens, lengths, tolerance)
    with within_reach(model):
        _compare_alone(model, head, tokens, (11, 7), tolerance)


def _compare_alone(
    model: PreTrainedModel, head: Head, tokens: Sequence[int], lengths: tuple[int, int], tolerance: float
) -> None:
    real = torch.arange(max(lengths), device=model.device) < torch.tensor(lengths, device=model.device)[:, None]
    ids = torch.tensor(tokens, device=model.device)[torch.arange(max(lengths)) % len(tokens)].expand(2, -1)
    together = read_logits(model, head, torch.where(real, ids, 0), real).float()
    alone = torch.cat([read_logits(model, head, ids[:1, :n], real[:1, :n] | True).float() for n in lengths])
    difference = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    if not difference <= tolerance:
        raise ValueError(
            f"{type(model).__name__}: rows of {lengths[0]} and {lengths[1]} tokens score otherwise together than "
            f"alone, by {difference:.1e} of the largest logit: its numbers depend on batch mates (a rotary position "
            "embedding, a window or a router that looks at the whole batch); it is not supported as a reward model"
        )


def context_length(model: PreTrainedModel) -> int | None:
    """Longest row the model was built for, in tokens; None where its config names no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # RoBERTa counts positions from padding_idx + 1, so its table is larger than its context
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)
    return limit if limit is None or offset is None else limit - offset - 1
