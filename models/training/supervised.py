"""Supervised fine-tuning and reward models, on transformers' Trainer.

Token ids in, metrics out: :func:`model_input` is the one place that says what a model reads, here and in PPO, where a
prompt and its response stand side by side and EOS is there exactly when the policy ended.
"""

import models.weights.four_bit  # noqa: F401  # first: Trainer imports PEFT, and PEFT bitsandbytes, which has much to say

# isort: split
import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from models.passes.rotary import read_rows_alone
from models.progress_bars import save_without_bars
from models.training.objectives import (
    IGNORED,
    Batch,
    Completion,
    Labelled,
    Objective,
    Pair,
    completion_batch,
    label_batch,
    label_loss,
    language_loss,
    log_odds,
    padded,
    pair_batch,
    pair_loss,
)
from models.training.settings import TrainingSettings
from models.weights.adapter_weights import require_wide
from models.weights.seeding import seeded
from rlhf_core.distributed import require_one_process


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
    with seeded(seed, "cpu"):
        return GPT2LMHeadModel(config)


def new_classifier(
    language_model: PreTrainedModel, *, seed: int, layers: int | None = None, **changes: object
) -> PreTrainedModel:
    """A classifier of two labels on a copy of the language model's trunk, with a fresh head.

    ``layers`` is how many layers of the trunk are kept, from the lowest (None: all). ``changes`` are set in the copied
    configuration (dropout, or ``num_labels=1`` for a head of one logit).

    Raises:
        ValueError: a change the configuration has no field for, or more layers than the trunk has.
    """
    config = copy.deepcopy(language_model.config)
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"new_classifier: {type(config).__name__} has no {name!r} to set to {value!r}")
        setattr(config, name, value)
    if config.num_labels == 2:
        config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise ValueError(f"new_classifier: the trunk has {config.num_hidden_layers} layers, {layers} are asked for")
        config.num_hidden_layers = layers
    with seeded(seed, "cpu"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    weights = language_model.base_model.state_dict()
    model.base_model.load_state_dict({name: weights[name] for name in model.base_model.state_dict()})
    return model


def freeze_layers(model: PreTrainedModel, number: int) -> None:
    """Leave the input embeddings and the lowest ``number`` layers as they are in training, which makes it cheaper;
    0 leaves nothing out.

    Raises:
        ValueError: more layers than the trunk has.
    """
    if not number:
        return
    stacks = [module for module in model.base_model.children() if isinstance(module, nn.ModuleList)]
    if len(stacks) != 1 or not 0 < number <= len(stacks[0]):
        raise ValueError(f"freeze_layers: {type(model).__name__} has no {number} layers to freeze")
    for module in (model.get_input_embeddings(), *stacks[0][:number]):
        module.requires_grad_(False)


def train_language_model(
    model: nn.Module, rows: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], settings: TrainingSettings
) -> dict[str, float]:
    """Fine-tune a causal language model on token ids (:func:`model_input`), in place.

    Returns:
        ``train_loss`` (nats per token, mean over the run) and the held-out ``perplexity``.

    Raises:
        ValueError: no rows, or a row of fewer than two tokens, from which there is nothing to predict.
    """
    return train_completions(model, _whole(rows), _whole(held_out), settings)


def train_completions(
    model: nn.Module, rows: Sequence[Completion], held_out: Sequence[Completion], settings: TrainingSettings
) -> dict[str, float]:
    """Fine-tune a causal language model on responses to prompts, in place; only tokens of a response carry loss.

    Returns:
        ``train_loss`` (nats per token, mean over the run) and the held-out ``perplexity`` of the responses.

    Raises:
        ValueError: no rows, or one without a token to predict.
    """
    for name, some in (("rows", rows), ("held_out", held_out)):
        short = [i for i, row in enumerate(some) if len(row.ids) <= max(row.prompt_tokens, 1)]
        if not some or short:
            raise ValueError(
                f"train_language_model, train_completions: {name} must hold rows with a token to predict after the "
                f"first (and after the prompt); too short: {short[:3]}"
            )
    loss = _train(model, list(rows), completion_batch, language_loss, settings)
    return {"train_loss": loss, "perplexity": response_perplexity(model, held_out)}


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
    train_loss = _train(model, list(rows), label_batch, label_loss, settings)
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
    train_loss = _train(model, list(rows), pair_batch, pair_loss, settings)
    chosen = last_token_scores(model, [row.chosen for row in held_out])
    rejected = last_token_scores(model, [row.rejected for row in held_out])
    return {
        "train_loss": train_loss,
        "loss": -functional.logsigmoid(chosen - rejected).mean().item(),
        "accuracy": (chosen > rejected).float().mean().item(),
    }


def perplexity(model: nn.Module, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> float:
    """exp of the mean nats per predicted token, every token of every row weighing the same."""
    return response_perplexity(model, _whole(rows), batch_size=batch_size)


def _whole(rows: Sequence[Sequence[int]]) -> list[Completion]:
    """Texts of which every token is learned."""
    return [Completion(ids=ids, prompt_tokens=0) for ids in rows]


@torch.no_grad()
def response_perplexity(model: nn.Module, rows: Sequence[Completion], *, batch_size: int = 16) -> float:
    """exp of the mean nats per token of a response; tokens of prompts do not count."""
    nats, tokens = 0.0, 0
    with _evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = completion_batch(rows[start : start + batch_size])
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            nats += language_loss(model, _on(model, batch)).item() * count
            tokens += count
    return math.exp(nats / tokens)


@torch.no_grad()
def last_token_scores(
    model: nn.Module, rows: Sequence[Sequence[int]], *, batch_size: int = 16
) -> Float[Tensor, " row"]:
    """Log-odds of every row, read at its last token, on the CPU."""
    parts = []
    with _evaluating(model):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            batch = _on(model, {**padded(some), "read": torch.tensor([[len(ids) - 1] for ids in some])})
            parts.append(log_odds(model, batch).squeeze(1).float().cpu())
    return torch.cat(parts)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write the model (safetensors) and its tokenizer as a transformers folder."""
    save_without_bars(model, folder)
    tokenizer.save_pretrained(folder)


def _train(
    model: nn.Module,
    rows: list[Any],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    loss: Callable[[nn.Module, Batch], Tensor],
    settings: TrainingSettings,
) -> float:
    """Run Trainer; the mean loss. Nothing is written: its checkpoints are pickles, which this project never writes."""
    require_one_process()
    read_rows_alone(model)
    require_wide(model)
    with tempfile.TemporaryDirectory() as folder, _generators_restored():
        trainer = Trainer(
            model=Objective(model, loss),
            args=_arguments(settings, folder, next(model.parameters()).device),
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


def _arguments(settings: TrainingSettings, folder: str, device: torch.device) -> TrainingArguments:
    """Trainer's, for a model that stays on its device: by itself it takes the first card, or all that it sees."""
    gpu = device.type != "cpu"
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs or 1.0,
        per_device_train_batch_size=settings.micro_batch_size or settings.batch_size,
        gradient_accumulation_steps=settings.batch_size // (settings.micro_batch_size or settings.batch_size),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # below 1: a share of the steps
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        bf16=settings.autocast == "bfloat16",
        seed=settings.seed,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        disable_tqdm=not settings.progress,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    if (arguments.device.type, arguments.device.index or 0) != (device.type, device.index or 0):
        raise ValueError(
            f"the model is on {device}, and Trainer would move it to {arguments.device}; load it there, or name the "
            "card to use in CUDA_VISIBLE_DEVICES"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch, which Trainer seeds; a library must not change them."""
    import random

    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        # naming all cards is what it does by itself, with a warning where there are several
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
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
