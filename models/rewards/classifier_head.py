"""Read a sequence classifier at an explicit position, with its own head.

Of a decoder, transformers pools by looking for the pad id, ignores the attention mask, and reads the token before EOS
where pad and EOS share an id. Here the backbone runs, one hidden state a row is picked by index, and the head is
applied to it: the state of the last token, or, with ``pooling="hf"``, of the token that transformers would pick. An
encoder's own forward pass does its pooling, on hidden states that are there already.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from models.passes.cache import without_cache
from models.passes.context_length import context_length
from models.passes.length_switches import beside_switches, past_switches, within_reach
from models.passes.rounding import rounds_coarsely
from models.rewards.score_names import Pooling
from rlhf_core.names import nearest

ReadLogits = Callable[[Tensor, Tensor], Tensor]
"""Logits (row, label) of right-padded ids (row, position), given with their attention mask."""
HEAD_NAMES = ("score", "classifier", "pooler", "pre_classifier", "head", "sequence_summary")


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """A classification head: the tokens it reads (decoders the last, EOS included; encoders the first, [CLS], or
    several), and the logits it makes of a row's last hidden states, up to the token that it reads."""

    reads: Literal["last", "first", "several"]
    logits: Callable[
        [Float[Tensor, "batch position hidden"], Bool[Tensor, "batch position"]], Float[Tensor, "batch label"]
    ]
    skips: int | None = None
    """The token that is not read where a row ends with it, as transformers skips the pad token; None: none is."""

    def ends(self, input_ids: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        """The column at which a row that ends at each column is read; the first, where there is nothing but what the
        head skips."""
        columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return columns if self.skips is None else columns.masked_fill(input_ids == self.skips, 0).cummax(1).values

    def read_part(
        self, input_ids: Int[Tensor, "batch position"], attention_mask: Bool[Tensor, "batch position"]
    ) -> Bool[Tensor, "batch position"]:
        """``attention_mask`` of right-padded rows without the tokens at the end that the head skips."""
        if self.skips is None:
            return attention_mask
        end = self.ends(input_ids).gather(1, _last(attention_mask)[:, None])
        return attention_mask & (torch.arange(input_ids.shape[1], device=input_ids.device) <= end)

    def positions(self, attention_mask: Bool[Tensor, "batch position"]) -> Int[Tensor, " batch"]:
        """Column each right-padded row is read at; the first, where it is read at several."""
        last = _last(attention_mask)
        return last if self.reads == "last" else torch.zeros_like(last)


def _last(attention_mask: Bool[Tensor, "batch position"]) -> Int[Tensor, " batch"]:
    return attention_mask.sum(1) - 1


def find_head(model: PreTrainedModel, pooling: Pooling = "last") -> Head:
    """The head of a transformers ``...ForSequenceClassification`` model. ``pooling`` of a decoder: "last" reads the
    last token, whatever it is; "hf" the last token that is not the pad token of its configuration, as transformers
    does.

    Raises:
        ValueError: none of the known forms; the message names the class and what is supported. Another ``pooling``, or
            "hf" of an encoder or without a pad token.
    """
    require_pooling(pooling)
    name = type(model).__name__
    score = getattr(model, "score", None)
    if isinstance(score, nn.Module):
        skips = _pad_token(model) if pooling == "hf" else None
        return Head(reads="last", logits=partial(_at_the_last, score), skips=skips)
    if pooling == "hf":
        raise ValueError(
            f"{name}: pooling='hf' is for decoders, which transformers reads at their last token that is not padding; "
            "an encoder is always read as its own class does. Leave pooling out"
        )
    try:
        reads = _what_it_reads(model)
    except Exception as error:
        raise ValueError(
            f"{name}: cannot find its classification head ({type(error).__name__}: {error}). "
            "Supported: a `score` layer on the last token (GPT-2, Llama and most decoders), and encoders that make "
            "their logits of nothing but last hidden states and mask"
        ) from error
    return Head(reads=reads, logits=partial(_own_logits, model))


def require_pooling(pooling: Pooling) -> None:
    """Raise ValueError for an unknown one."""
    kinds = get_args(Pooling)
    if pooling not in list(kinds):
        raise ValueError(f"pooling must be one of {', '.join(kinds)}, got {pooling!r}{nearest(pooling, kinds)}")


def _pad_token(model: PreTrainedModel) -> int:
    found: int | None = model.config.get_text_config().pad_token_id
    if found is None:
        raise ValueError(
            f"{type(model).__name__}: pooling='hf' skips the pad token at the end of a row, and its config.json names "
            "none. Write the one that it was trained with there, as pad_token_id, or leave pooling at 'last'"
        )
    return found


def _at_the_last(
    score: nn.Module, hidden: Float[Tensor, "batch position hidden"], attention_mask: Bool[Tensor, "batch position"]
) -> Float[Tensor, "batch label"]:
    rows = torch.arange(len(hidden), device=hidden.device)
    logits: Tensor = score(hidden[rows, _last(attention_mask)])
    return logits


def _own_logits(
    model: PreTrainedModel,
    hidden: Float[Tensor, "batch position hidden"],
    attention_mask: Bool[Tensor, "batch position"],
) -> Float[Tensor, "batch label"]:
    """The logits of the model's own forward pass, with its trunk replaced by given hidden states."""
    mask = attention_mask.long()
    with _trunk_gives(model.base_model, hidden):
        logits: Tensor = model(input_ids=torch.zeros_like(mask), attention_mask=mask, return_dict=True).logits
    return logits


@contextmanager
def _trunk_gives(trunk: Any, hidden: Float[Tensor, "batch position hidden"]) -> Iterator[None]:
    pooler = getattr(trunk, "pooler", None)
    if isinstance(pooler, nn.Linear):  # ALBERT's and BigBird's activation is an attribute of its own
        activation: Any = getattr(trunk, "pooler_activation", getattr(trunk, "activation", None))
        pooled = activation(pooler(hidden[:, 0]))
    else:
        pooled = None if pooler is None else pooler(hidden)
    trunk.forward = lambda *_, **__: BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
    try:
        yield
    finally:
        del trunk.forward


def _what_it_reads(model: PreTrainedModel) -> Literal["first", "several"]:
    """Find which tokens the head reads from the gradient of its logits: it is 0 at hidden states that are not read."""
    ids = _differing_ids(model)[:, :5]
    real = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        hidden = last_hidden(model, real, input_ids=ids)
    with torch.enable_grad():
        logits = _own_logits(model, hidden.requires_grad_(), real)
        (slope,) = torch.autograd.grad(logits.square().sum(), hidden)
    return "several" if bool(slope[0, 1:].any()) else "first"


def last_hidden(
    model: PreTrainedModel, attention_mask: Bool[Tensor, "batch position"], **inputs: Tensor
) -> Float[Tensor, "batch position hidden"]:
    """Last hidden states of right-padded rows, given as ``input_ids`` or ``inputs_embeds``, with gradient where
    enabled; what stands on padding has no meaning."""
    mask = attention_mask.long()
    output = model.base_model(**inputs, **without_cache(model), attention_mask=mask, return_dict=True)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _read_logits(
    model: PreTrainedModel,
    head: Head,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"],
) -> Float[Tensor, "batch label"]:
    """Logits of right-padded rows, with gradient where enabled."""
    hidden = last_hidden(model, attention_mask, input_ids=input_ids)
    return head.logits(hidden, head.read_part(input_ids, attention_mask))


def why_not_causal(model: PreTrainedModel, head: Head) -> str:
    """Why the model has no prefix scores, in words; empty if it has."""
    if head.reads != "last":
        where = "the first token, which sees" if head.reads == "first" else "several tokens, which see"
        return f"it reads its score at {where} the whole text"
    return why_later_tokens_count(model)


@torch.no_grad()
def why_later_tokens_count(model: PreTrainedModel) -> str:
    """Why states depend on what comes after them, in words; empty where they do not.

    Found out by exchanging the last of nine tokens: the states before it must not move.
    """
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(9, device=model.device).repeat(2, 1) % size
    ids[1, -1] = (ids[0, -1] + 1) % size
    hidden = last_hidden(model, torch.ones_like(ids, dtype=torch.bool), input_ids=ids)[:, :-1].float()
    moved = float((hidden[0] - hidden[1]).norm() / hidden.norm().clamp(min=1e-6))
    if moved <= (5e-2 if rounds_coarsely(model) else 1e-5):
        return ""
    return f"its states before a token move with that token (by {moved:.1e} of their 2-norm): it is not causal"


@torch.no_grad()
def require_own_logits(model: PreTrainedModel, head: Head, tolerance: float) -> None:
    """On rows without padding, where its pooling is right, transformers must give the logits that are read of these
    rows side by side. Where the head pools as transformers does, these rows end with the pad token.

    Raises:
        ValueError: it does not, so the head is applied wrongly; by how much (relative to the largest logit).
    """
    ids = _differing_ids(model)
    if head.skips is not None:
        ids[:, -2:] = head.skips
    lengths = (ids.shape[1], max(ids.shape[1] // 2, 1))
    alone = [ids[:, :length] for length in lengths]
    mask = torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
    ours = _read_logits(model, head, torch.where(mask, ids, 0), mask).float()
    whole = [model(input_ids=row, attention_mask=torch.ones_like(row)).logits.float() for row in alone]
    theirs = torch.cat(whole)
    same_shape = ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)) if same_shape else float("inf")
    if not difference <= tolerance:
        raise ValueError(
            f"{type(model).__name__}: its head, applied to hidden states of padded rows, differs from its own forward "
            f"pass by {difference:.1e} of the largest logit; it is not supported as a reward model"
        )
    require_same_alone(model, partial(_read_logits, model, head), ids[0].tolist(), tolerance)


@torch.no_grad()
def require_same_alone(model: PreTrainedModel, read: ReadLogits, tokens: Sequence[int], tolerance: float) -> None:
    """A row's logits, which ``read`` gives of ids and attention mask, must be the same alone and beside a row of
    another length, on both sides of every switch that the config names (see :mod:`models.passes.length_switches`).

    Raises:
        ValueError: they are not; by how much (relative to the largest logit).
    """
    context = context_length(model)
    for lengths in beside_switches(model, context):
        _compare_alone(model, read, tokens, lengths, tolerance)
    with within_reach(model):
        _compare_alone(model, read, tokens, past_switches(context), tolerance)


def _compare_alone(
    model: PreTrainedModel, read: ReadLogits, tokens: Sequence[int], lengths: tuple[int, int], tolerance: float
) -> None:
    real = torch.arange(max(lengths), device=model.device) < torch.tensor(lengths, device=model.device)[:, None]
    ids = torch.tensor(tokens, device=model.device)[torch.arange(max(lengths)) % len(tokens)].expand(2, -1)
    together = read(torch.where(real, ids, 0), real).float()
    alone = torch.cat([read(ids[:1, :n], real[:1, :n] | True).float() for n in lengths])
    difference = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    if not difference <= tolerance:
        raise ValueError(
            f"{type(model).__name__}: rows of {lengths[0]} and {lengths[1]} tokens score otherwise together than "
            f"alone, by {difference:.1e} of the largest logit: its numbers depend on batch mates (a rotary position "
            "embedding, a window or a router that looks at the whole batch); it is not supported as a reward model"
        )


def _differing_ids(model: PreTrainedModel) -> Int[Tensor, "1 position"]:
    """A row of different ids, none of which the model may take for padding."""
    text = model.config.get_text_config()
    tokens = [token for token in range(min(8, text.vocab_size)) if token != text.pad_token_id]
    return torch.tensor([tokens], device=model.device)
