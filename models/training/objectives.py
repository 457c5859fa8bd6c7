"""Training examples, how they are batched, and the loss of each kind.

Classifiers are read at the last real token by explicit index; a head with two logits and one with a single logit are
the same thing, a log-odds (logit of label 1 minus logit of label 0), so one loss serves both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100  # transformers' label of a token that carries no loss

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One text as the model reads it, and the labels of its last ``len(labels)`` beginnings.

    A label is 1 (positive), 0 (negative), or the probability of 1. ``labels[-1]`` belongs to the whole, ``labels[-2]``
    to all but the last token, and so on. A causal model reads every beginning of a text in one pass, and a response is
    a beginning: small models learn within hundreds of steps from all of them what the last token alone does not teach
    them in thousands. Tests look at ``labels[-1]`` only.
    """

    ids: Sequence[int]
    labels: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A response to imitate, after the first ``prompt_tokens`` of ``ids``, which are read and not learned."""

    ids: Sequence[int]
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two responses to one prompt, prompt included, as the model reads them."""

    chosen: Sequence[int]
    rejected: Sequence[int]


def log_odds(model: nn.Module, batch: Batch) -> Float[Tensor, "batch read"]:
    """Log-odds at the columns ``read`` (-1: none, whatever stands there has no meaning) of right-padded rows.

    The head is applied here because transformers' own pooling looks for the pad id, and so reads the wrong token
    where padding and EOS share one.
    """
    through_peft: Any = getattr(model, "get_base_model", lambda: model)
    core = through_peft()
    if not isinstance(getattr(core, "score", None), nn.Module):
        raise TypeError(
            f"{type(core).__name__} has no `score` head to read at the last token; use a causal model's "
            "ForSequenceClassification class (GPT-2, Llama, Qwen, ...)"
        )
    hidden = core.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    read = batch["read"].clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[2])
    logits: Tensor = core.score(hidden.gather(1, read))
    if logits.shape[2] not in (1, 2):
        raise ValueError(f"{type(core).__name__} has {logits.shape[2]} labels; a reward is read from one or two logits")
    return logits[..., 0] if logits.shape[2] == 1 else logits[..., 1] - logits[..., 0]


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows side by side, padded on the right; which id stands on padding has no meaning."""
    lengths = torch.tensor([len(ids) for ids in rows])
    tensors = [torch.tensor(ids) for ids in rows]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(tensors, batch_first=True),
        "attention_mask": torch.arange(int(lengths.max())) < lengths[:, None],
    }


def completion_batch(rows: Sequence[Completion]) -> dict[str, Tensor]:
    """Rows whose labels are their own ids, ``IGNORED`` on prompts and padding."""
    batch = padded([row.ids for row in rows])
    starts = torch.tensor([row.prompt_tokens for row in rows])
    columns = torch.arange(batch["input_ids"].shape[1])
    learned = batch["attention_mask"] & (columns >= starts[:, None])
    return {**batch, "labels": torch.where(learned, batch["input_ids"], IGNORED)}


def label_batch(rows: Sequence[Labelled]) -> dict[str, Tensor]:
    """Rows, the columns their labels belong to (-1: none), and the labels."""
    reads = [torch.arange(len(row.ids) - len(row.labels), len(row.ids)) for row in rows]
    labels = [torch.tensor(row.labels, dtype=torch.float32) for row in rows]
    return {
        **padded([row.ids for row in rows]),
        "read": nn.utils.rnn.pad_sequence(reads, batch_first=True, padding_value=-1),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True),
    }


def pair_batch(rows: Sequence[Pair]) -> dict[str, Tensor]:
    """Chosen and rejected on alternate rows."""
    both = [ids for row in rows for ids in (row.chosen, row.rejected)]
    return {**padded(both), "read": torch.tensor([[len(ids) - 1] for ids in both])}


def language_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, nats, mean over the labelled ones."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())


def label_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labels under the log-odds, nats, mean over labels."""
    read = batch["read"] >= 0
    return functional.binary_cross_entropy_with_logits(log_odds(model, batch)[read], batch["labels"][read])


def pair_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Bradley-Terry: mean over pairs of -log σ(score(chosen) - score(rejected)), nats."""
    chosen, rejected = log_odds(model, batch).view(-1, 2).unbind(1)
    return -functional.logsigmoid(chosen - rejected).mean()


class Objective(nn.Module):
    """A model and its loss, in the shape Trainer wants."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss under the name that Trainer looks for."""
        return {"loss": self.loss(self.model, batch)}
