"""The models and prompts of positive generation, made from review files."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.data.records import fingerprints
from benchmarks.data.reviews import Review, Reviews, half, held_out, read_reviews, review_prompts
from benchmarks.tasks.preparation import (
    continuations,
    from_base,
    from_scratch,
    prepared_folder,
    require_prompts,
    write_prompts,
    write_report,
)
from models.texts.prompts import encode
from models.training.objectives import Labelled
from models.training.supervised import (
    TrainingSettings,
    model_input,
    new_classifier,
    save,
    train_classifier,
    train_language_model,
)

shown = partial(TrainingSettings, progress=True)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How the models of one size are trained."""

    language: TrainingSettings
    reward: TrainingSettings


STAGES: Mapping[str, Stages] = {
    "micro": Stages(
        language=TrainingSettings(steps=50, learning_rate=4e-3), reward=TrainingSettings(steps=50, learning_rate=2e-3)
    ),
    "tiny": Stages(
        language=shown(steps=1500, learning_rate=2e-3),
        reward=shown(steps=2000, learning_rate=1e-3),
    ),
    "small": Stages(
        language=shown(epochs=3, batch_size=32, learning_rate=6e-4),
        reward=shown(epochs=1, batch_size=32, learning_rate=1e-4),
    ),
    "gpt2": Stages(
        language=shown(epochs=3, batch_size=32, learning_rate=6e-4),
        reward=shown(epochs=1, batch_size=32, learning_rate=5e-5),
    ),
    "base": Stages(language=shown(epochs=1, learning_rate=5e-5), reward=shown(epochs=1, learning_rate=2e-5)),
}


@dataclass(frozen=True, kw_only=True)
class PositiveGeneration:
    """Continue the beginning of a film review so that a sentiment classifier likes it."""

    data: str | list[str]
    """One review file or a list, '[FILE,FILE]' (.jsonl, .jsonl.gz, .json, .csv, .parquet, or hub:NAME), with columns
    text and label (1 positive, 0 negative); files without labels serve the language model only."""
    out: str
    """Folder to write; must be new or empty."""
    size: Literal["micro", "tiny", "small", "gpt2"] | None = None
    """Train a GPT-2 of this size from scratch, on a byte-level BPE of 2,048 tokens made here (default: tiny)."""
    base: str | None = None
    """Fine-tune this causal language model (folder or hub name), with its own tokenizer, instead."""
    language: TrainingSettings | None = None
    """Training of the language model; null takes the recipe of the size or base."""
    reward: TrainingSettings | None = None
    """Training of the reward model; null takes the recipe of the size or base."""
    max_tokens: int = 96
    """Tokens of a review that are read, from its beginning, as prompts and responses are beginnings."""
    min_tokens: int = 12
    """Shortest beginning of a review that the reward model learns from and is tested on."""
    gold: bool = False
    """Train the reward model on one half of the labelled reviews, and on the other half a second one that PPO never
    sees, OUT/gold: what over-optimisation is measured against."""
    seed: int = 0
    """Seed of initial weights, tested lengths and prompt lengths."""
    overwrite: bool = False
    """Delete what an earlier preparation left in the out folder."""

    def __post_init__(self) -> None:
        if not self.files():
            raise ValueError("prepare: --data names no file")
        if self.size is not None and self.base is not None:
            raise ValueError(f"prepare: give --size ({self.size}) or --base ({self.base}), not both")
        if not 1 <= self.min_tokens <= self.max_tokens or self.max_tokens < 16:
            raise ValueError(
                f"prepare: min_tokens {self.min_tokens} must lie between 1 and max_tokens {self.max_tokens}, and "
                "max_tokens be 16 or more: a prompt takes up to 7 of them"
            )

    def files(self) -> list[str]:
        """The files, as a list."""
        return [self.data] if isinstance(self.data, str) else list(self.data)

    def resolved(self) -> "PositiveGeneration":
        """The same with every default that depends on the size or base written out."""
        size = None if self.base is not None else self.size or "tiny"
        stages = STAGES[size or "base"]
        return replace(self, size=size, language=self.language or stages.language, reward=self.reward or stages.reward)


def prepare_positive_generation(settings: PositiveGeneration) -> dict[str, Any]:
    """Make everything ``--task positive_generation --models OUT`` needs, and return the report.

    Raises:
        FileExistsError: the out folder is not empty, or, with ``overwrite``, was not made by a script of ours.
        ValueError: unusable data or models that cannot be combined.
    """
    settings = settings.resolved()
    with prepared_folder(Path(settings.out), overwrite=settings.overwrite) as folder:
        reviews = read_reviews(settings.files())
        _require_both_labels(reviews)
        print(reviews.summary(), flush=True)
        report = _build(settings, reviews, folder)
        write_report(folder, report, settings, fingerprints(settings.files()))
    return report


def _build(settings: PositiveGeneration, reviews: Reviews, folder: Path) -> dict[str, Any]:
    assert settings.language is not None
    assert settings.reward is not None  # both resolved
    kept = [review for review in reviews.labelled if not held_out(review.text)]
    tested = [review for review in reviews.labelled if held_out(review.text)]
    texts = [review.text for review in kept] + list(reviews.unlabelled)
    size = settings.max_tokens
    if settings.base is not None:
        language_model, tokenizer = from_base(settings.base, context=size)
    else:
        # positions beyond the longest row would never be trained
        language_model, tokenizer = from_scratch(str(settings.size), texts, context=size, seed=settings.seed)
    ids = encode(tokenizer, texts)
    test_ids = encode(tokenizer, [review.text for review in tested])
    splits = {
        "train": review_prompts((review.text for review in kept), ids[: len(kept)], seed=settings.seed),
        "held_out": review_prompts((review.text for review in tested), test_ids, seed=settings.seed),
    }
    require_prompts(splits, "they are beginnings of labelled reviews of more than 200 characters")

    started = time.perf_counter()
    measured = train_language_model(
        language_model,
        [_read(tokenizer, row, size) for row in ids],
        [_read(tokenizer, row, size) for row in test_ids],
        settings.language,
    )
    report: dict[str, Any] = {"language_model": {**measured, "seconds": time.perf_counter() - started}}
    print(f"language model: {report['language_model']}", flush=True)
    save(language_model, tokenizer, folder / "policy")

    rows = [_beginnings(tokenizer, row, review.label, settings) for row, review in zip(ids, kept, strict=False)]
    test_rows = _snippets(tokenizer, test_ids, [review.label for review in tested], settings)
    for index, (name, some) in enumerate(_reward_rows(settings, kept, rows).items()):
        started = time.perf_counter()
        classifier = new_classifier(language_model, seed=settings.seed + index)
        measured = train_classifier(classifier, some, test_rows, settings.reward)
        report[f"{name}_model"] = {**measured, "reviews": len(some), "seconds": time.perf_counter() - started}
        print(f"{name} model: {report[f'{name}_model']}", flush=True)
        save(classifier, tokenizer, folder / name)

    rows_of = {
        split: [{"ids": prompt, "text": tokenizer.decode(prompt)} for prompt in some] for split, some in splits.items()
    }
    write_prompts(folder / "prompts.jsonl", rows_of)
    report["data"] = {
        "labelled": len(reviews.labelled),
        "unlabelled": len(reviews.unlabelled),
        "held_out": len(tested),
        "left_out": {reason: len(rows) for reason, rows in reviews.rejected.items()},
        "hold_out": "labelled reviews whose cleaned text has a SHA-256 divisible by 10",
        "prompts": {split: len(prompts) for split, prompts in splits.items()},
    }
    report["samples"] = continuations(language_model, tokenizer, splits["held_out"], seed=settings.seed)
    return report


def _reward_rows(
    settings: PositiveGeneration, kept: Sequence[Review], rows: Sequence[Labelled]
) -> dict[str, list[Labelled]]:
    """What each reward model learns from: all rows, or with a gold model two halves that share no review."""
    if not settings.gold:
        return {"reward": list(rows)}
    halves = [half(review.text) for review in kept]
    return {
        name: [row for row, own in zip(rows, halves, strict=True) if own == index]
        for index, name in enumerate(("reward", "gold"))
    }


def _read(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], size: int) -> list[int]:
    return model_input(ids, eos_id=tokenizer.eos_token_id, max_tokens=size)


def _beginnings(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], label: int, settings: PositiveGeneration
) -> Labelled:
    """A review to learn from, its label asked for at the end of every beginning of ``min_tokens`` or more: what the
    reward model will be shown in PPO is a beginning, cut or ended."""
    read = _read(tokenizer, ids, settings.max_tokens)
    return Labelled(ids=read, labels=[label] * max(1, len(read) - settings.min_tokens + 1))


def _snippets(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    labels: Sequence[int],
    settings: PositiveGeneration,
) -> list[Labelled]:
    """Beginnings to test on, lengths uniform from ``min_tokens`` to ``max_tokens``."""
    lengths = np.random.default_rng(settings.seed).integers(settings.min_tokens, settings.max_tokens + 1, len(rows))
    return [
        Labelled(ids=_read(tokenizer, ids, int(length)), labels=[label])
        for ids, label, length in zip(rows, labels, lengths, strict=True)
    ]


def _require_both_labels(reviews: Reviews) -> None:
    counts = {
        (part, label): sum(held_out(review.text) == part and review.label == label for review in reviews.labelled)
        for part in (False, True)
        for label in (0, 1)
    }
    if min(counts.values()) == 0:
        raise ValueError(
            "prepare: both labels are needed in the training rows and in the hold-out; got "
            + ", ".join(
                f"{count} {'held out' if part else 'to train on'} with label {label}"
                for (part, label), count in counts.items()
            )
        )
