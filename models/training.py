"""Supervised fine-tuning and reward models, on transformers' Trainer.

Token ids in, metrics out: :func:`model_input` is the one place that says what a model reads, here and in PPO, where a
prompt and its response stand side by side and EOS is there exactly when the policy ended. Classifiers are read at the
last real token by explicit index; a head with two logits and one with a single logit are the same thing, a log-odds
(logit of label 1 minus logit of label 0), so one loss serves both.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

IGNORED = -100  # transformers' label of a token that carries no loss

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast to train. AdamW, linear warmup, cosine decay to 0, gradient norm clipped to 1.

    Raises:
        ValueError: unless exactly one of ``steps`` and ``epochs`` is given, and everything is positive.
    """

    steps: int | None = None
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the rows."""
    batch_size: int = 16
    """Rows (for preferences: pairs) of one optimizer step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    beta2: float = 0.999
    """AdamW's memory of squared gradients; short runs from scratch want less of it (0.98)."""
    seed: int = 0
    """Seed of the order of the rows and of dropout."""
    progress: bool = False
    """Show Trainer's progress bar."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"TrainingSettings: give exactly one of steps ({self.steps}) and epochs ({self.epochs})")
        for name in ("steps", "epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TrainingSettings: {name} must be above 0, got {value}")
        if not (0 <= self.warmup < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0):
            raise ValueError(
                f"TrainingSettings: warmup {self.warmup} and beta2 {self.beta2} must lie in [0, 1), "
                f"weight_decay {self.weight_decay} must be 0 or more"
            )


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
class Pair:
    """Two responses to one prompt, prompt included, as the model reads them."""

    chosen: Sequence[int]
    rejected: Sequence[int]


def model_input(ids: Sequence[int], *, eos_id: int, max_tokens: int) -> list[int]:
    """What a model reads of a text: its tokens, then EOS, cut after ``max_tokens``.

    So EOS stands at the end exactly when the text ended in time; one that was cut looks like a response that was.
    """
    return [*ids, eos_id][:max_tokens]


def new_language_model(
    tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int, heads: int, context: int, init_std: float, seed: int
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and without dropout, for a tokenizer that has EOS and padding tokens.

    ``init_std`` is that of the weights; GPT-2's own 0.02 suits a width of 768, and narrow models hardly start to learn
    from it: take about width ** -0.5.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=init_std,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _seeded(seed):
        return GPT2LMHeadModel(config)


def new_classifier(language_model: PreTrainedModel, *, seed: int, **changes: object) -> PreTrainedModel:
    """A two-label classifier on a copy of the language model's trunk, with a fresh head.

    ``changes`` are set in the copied configuration (dropout, for one).

    Raises:
        ValueError: a change the configuration has no field for.
    """
    config = copy.deepcopy(language_model.config)
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"new_classifier: {type(config).__name__} has no {name!r} to set to {value!r}")
        setattr(config, name, value)
    config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    with _seeded(seed):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.base_model.load_state_dict(language_model.base_model.state_dict())
    return model


def train_language_model(
    model: nn.Module, rows: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], settings: TrainingSettings
) -> dict[str, float]:
    """Fine-tune a causal language model on token ids (:func:`model_input`), in place.

    Returns:
        ``train_loss`` (nats a token, mean over the run) and the held-out ``perplexity``.

    Raises:
        ValueError: no rows, or a row of fewer than two tokens, from which there is nothing to predict.
    """
    for name, some in (("rows", rows), ("held_out", held_out)):
        short = [i for i, ids in enumerate(some) if len(ids) < 2]
        if not some or short:
            raise ValueError(f"train_language_model: {name} must hold rows of 2 tokens or more; too short: {short[:3]}")
    loss = _train(model, list(rows), _language_batch, _language_loss, settings)
    return {"train_loss": loss, "perplexity": perplexity(model, held_out)}


def train_classifier(
    model: nn.Module, rows: Sequence[Labelled], held_out: Sequence[Labelled], settings: TrainingSettings
) -> dict[str, float]:
    """Fit a classifier's log-odds to labels by cross-entropy, in place, and test it at the last token.

    Returns:
        ``train_loss`` (nats), the held-out ``accuracy`` and ``loss``.

    Raises:
        ValueError: no rows, a row without labels or with more labels than tokens, or a label outside [0, 1].
    """
    for name, some in (("rows", rows), ("held_out", held_out)):
        wrong = [
            i
            for i, row in enumerate(some)
            if not (1 <= len(row.labels) <= len(row.ids) and all(0 <= label <= 1 for label in row.labels))
        ]
        if not some or wrong:
            raise ValueError(
                f"train_classifier: {name} must hold rows with 1 to len(ids) labels in [0, 1]; wrong: {wrong[:3]}"
            )
    train_loss = _train(model, list(rows), _label_batch, _label_loss, settings)
    scores = last_token_scores(model, [row.ids for row in held_out])
    labels = torch.tensor([float(row.labels[-1]) for row in held_out])
    return {
        "train_loss": train_loss,
        "loss": functional.binary_cross_entropy_with_logits(scores, labels).item(),
        "accuracy": ((scores > 0) == (labels > 0.5)).float().mean().item(),
    }


def train_preference_model(
    model: nn.Module, rows: Sequence[Pair], held_out: Sequence[Pair], settings: TrainingSettings
) -> dict[str, float]:
    """Fit a classifier's score to comparisons by Bradley-Terry, -log σ(score(chosen) - score(rejected)), in place.

    Returns:
        ``train_loss`` (nats), the held-out ``accuracy`` (share of pairs ranked right) and ``loss``.

    Raises:
        ValueError: no rows, or a pair with an empty side.
    """
    for name, some in (("rows", rows), ("held_out", held_out)):
        wrong = [i for i, row in enumerate(some) if not row.chosen or not row.rejected]
        if not some or wrong:
            raise ValueError(f"train_preference_model: {name} must hold pairs without empty sides; wrong: {wrong[:3]}")
    train_loss = _train(model, list(rows), _pair_batch, _pair_loss, settings)
    chosen = last_token_scores(model, [row.chosen for row in held_out])
    rejected = last_token_scores(model, [row.rejected for row in held_out])
    return {
        "train_loss": train_loss,
        "loss": -functional.logsigmoid(chosen - rejected).mean().item(),
        "accuracy": (chosen > rejected).float().mean().item(),
    }


@torch.no_grad()
def perplexity(model: nn.Module, rows: Sequence[Sequence[int]], *, batch_size: int = 64) -> float:
    """exp of the mean nats per predicted token, every token of every row weighing the same."""
    nats, tokens = 0.0, 0
    with _evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = _language_batch(rows[start : start + batch_size])
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            nats += _language_loss(model, _on(model, batch)).item() * count
            tokens += count
    return math.exp(nats / tokens)


@torch.no_grad()
def last_token_scores(
    model: nn.Module, rows: Sequence[Sequence[int]], *, batch_size: int = 64
) -> Float[Tensor, " row"]:
    """Log-odds of every row, read at its last token, on the CPU."""
    parts = []
    with _evaluating(model):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            batch = _on(model, {**_padded(some), "read": torch.tensor([[len(ids) - 1] for ids in some])})
            parts.append(_scores(model, batch).squeeze(1).float().cpu())
    return torch.cat(parts)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write the model (safetensors) and its tokenizer as a transformers folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _scores(model: nn.Module, batch: Batch) -> Float[Tensor, "batch read"]:
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


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows side by side, padded on the right; which id stands on padding has no meaning."""
    lengths = torch.tensor([len(ids) for ids in rows])
    tensors = [torch.tensor(ids) for ids in rows]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(tensors, batch_first=True),
        "attention_mask": torch.arange(int(lengths.max())) < lengths[:, None],
    }


def _language_batch(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    batch = _padded(rows)
    return {**batch, "labels": torch.where(batch["attention_mask"], batch["input_ids"], IGNORED)}


def _label_batch(rows: Sequence[Labelled]) -> dict[str, Tensor]:
    reads = [torch.arange(len(row.ids) - len(row.labels), len(row.ids)) for row in rows]
    labels = [torch.tensor(row.labels, dtype=torch.float32) for row in rows]
    return {
        **_padded([row.ids for row in rows]),
        "read": nn.utils.rnn.pad_sequence(reads, batch_first=True, padding_value=-1),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True),
    }


def _pair_batch(rows: Sequence[Pair]) -> dict[str, Tensor]:
    """Chosen and rejected on alternate rows."""
    both = [ids for row in rows for ids in (row.chosen, row.rejected)]
    return {**_padded(both), "read": torch.tensor([[len(ids) - 1] for ids in both])}


def _language_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())


def _label_loss(model: nn.Module, batch: Batch) -> Tensor:
    read = batch["read"] >= 0
    return functional.binary_cross_entropy_with_logits(_scores(model, batch)[read], batch["labels"][read])


def _pair_loss(model: nn.Module, batch: Batch) -> Tensor:
    chosen, rejected = _scores(model, batch).view(-1, 2).unbind(1)
    return -functional.logsigmoid(chosen - rejected).mean()


class _Objective(nn.Module):
    """A model and its loss, in the shape Trainer wants."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(self.model, batch)}


def _train(
    model: nn.Module,
    rows: list[Any],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    loss: Callable[[nn.Module, Batch], Tensor],
    settings: TrainingSettings,
) -> float:
    """Run Trainer; the mean loss. Nothing is written: its checkpoints are pickles, which this project never writes."""
    with tempfile.TemporaryDirectory() as folder, _generators_restored():
        trainer = Trainer(
            model=_Objective(model, loss),
            args=_arguments(settings, folder),
            train_dataset=rows,
            data_collator=lambda some: {"batch": collate(some)},
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    model.eval()
    if not math.isfinite(result.training_loss):
        raise ValueError(
            f"training diverged (loss {result.training_loss}); lower learning_rate {settings.learning_rate}"
        )
    return result.training_loss


def _arguments(settings: TrainingSettings, folder: str) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs or 1.0,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # below 1: a share of the steps
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        seed=settings.seed,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        disable_tqdm=not settings.progress,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Trainer seeds Python's, numpy's and torch's global generators; a library must not."""
    import random

    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _on(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
