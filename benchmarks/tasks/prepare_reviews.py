"""The models and prompts of positive generation, made from review files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.data.records import as_list, fingerprints
from benchmarks.data.reviews import Reviews, by_hold_out, half, held_out, read_reviews, review_prompts
from benchmarks.tasks import prepared_folder as prepared
from benchmarks.tasks.starting_models import continuations, from_base, from_scratch
from benchmarks.tasks.training_recipes import REVIEWS
from models.texts.prompt_encoding import encode
from models.training import supervised
from models.training.objectives import Labelled
from models.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class ReviewPreparation:
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
        if not as_list(self.data):
            raise ValueError("prepare: --data names no file")
        if self.size is not None and self.base is not None:
            raise ValueError(f"prepare: give --size ({self.size}) or --base ({self.base}), not both")
        if not 1 <= self.min_tokens <= self.max_tokens or self.max_tokens < 16:
            raise ValueError(
                f"prepare: min_tokens {self.min_tokens} must lie between 1 and max_tokens {self.max_tokens}, and "
                "max_tokens be 16 or more: a prompt takes up to 7 of them"
            )

    def resolved(self) -> "ReviewPreparation":
        """The same with every default that depends on the size or base written out."""
        size = None if self.base is not None else self.size or "tiny"
        return prepared.with_recipe(replace(self, size=size), REVIEWS[size or "base"])


def prepare_positive_generation(settings: ReviewPreparation) -> dict[str, Any]:
    """Make everything ``--task positive_generation --models OUT`` needs, and return the report.

    Raises:
        FileExistsError: the out folder is not empty, or, with ``overwrite``, was not made by a script of ours.
        ValueError: unusable data or models that cannot be combined.
    """
    settings = settings.resolved()
    with prepared.prepared_folder(Path(settings.out), overwrite=settings.overwrite) as folder:
        reviews = read_reviews(as_list(settings.data))
        _require_both_labels(reviews)
        print(reviews.summary(), flush=True)
        report = _build(settings, reviews, folder)
        prepared.write_report(folder, report, settings, fingerprints(as_list(settings.data)))
    return report


def _build(settings: ReviewPreparation, reviews: Reviews, folder: Path) -> dict[str, Any]:
    assert settings.language is not None
    assert settings.reward is not None  # both resolved
    kept, tested = by_hold_out(reviews.labelled, lambda review: review.text).values()
    texts = [review.text for review in kept] + list(reviews.unlabelled)
    size, report = settings.max_tokens, dict[str, Any]()
    if settings.base is not None:
        language_model, tokenizer = from_base(settings.base, context=size)
    else:
        # positions beyond the longest row would never be trained
        language_model, tokenizer = from_scratch(str(settings.size), texts, context=size, seed=settings.seed)
    ids, test_ids = encode(tokenizer, texts), encode(tokenizer, [review.text for review in tested])
    splits = {
        "train": review_prompts((review.text for review in kept), ids[: len(kept)], seed=settings.seed),
        "held_out": review_prompts((review.text for review in tested), test_ids, seed=settings.seed),
    }
    prepared.require_prompts(splits, "they are beginnings of labelled reviews of more than 200 characters")

    with prepared.reported(report, "language_model") as measured:
        read, test_read = ([_read(tokenizer, row, size) for row in some] for some in (ids, test_ids))
        measured.update(supervised.train_language_model(language_model, read, test_read, settings.language))
    supervised.save(language_model, tokenizer, folder / "policy")

    tests = _snippets(tokenizer, test_ids, [review.label for review in tested], settings)
    for index, name in enumerate(("reward", "gold") if settings.gold else ("reward",)):
        learned = [
            _beginnings(tokenizer, row, review.label, settings)
            for row, review in zip(ids, kept, strict=False)
            if not settings.gold or half(review.text) == index  # two halves that share no review
        ]
        with prepared.reported(report, f"{name}_model") as measured:
            classifier = supervised.new_classifier(language_model, seed=settings.seed + index)
            measured.update(
                supervised.train_classifier(classifier, learned, tests, settings.reward), reviews=len(learned)
            )
        supervised.save(classifier, tokenizer, folder / name)

    rows = {name: [{"ids": ids, "text": tokenizer.decode(ids)} for ids in some] for name, some in splits.items()}
    prepared.write_prompts(folder, rows)
    report["data"] = {
        "labelled": len(reviews.labelled),
        "unlabelled": len(reviews.unlabelled),
        "held_out": len(tested),
        "left_out": prepared.counts(reviews.rejected),
        "hold_out": "labelled reviews whose cleaned text has a SHA-256 divisible by 10",
        "prompts": prepared.counts(splits),
    }
    report["samples"] = continuations(language_model, tokenizer, splits["held_out"], seed=settings.seed)
    return report


def _read(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], size: int) -> list[int]:
    return supervised.model_input(ids, eos_id=tokenizer.eos_token_id, max_tokens=size)


def _beginnings(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], label: int, settings: ReviewPreparation
) -> Labelled:
    """A review to learn from, its label asked for at the end of every beginning of ``min_tokens`` or more: what the
    reward model will be shown in PPO is a beginning, cut or ended."""
    read = _read(tokenizer, ids, settings.max_tokens)
    return Labelled(ids=read, labels=[label] * max(1, len(read) - settings.min_tokens + 1))


def _snippets(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    labels: Sequence[int],
    settings: ReviewPreparation,
) -> list[Labelled]:
    """Beginnings to test on, lengths uniform from ``min_tokens`` to ``max_tokens``."""
    lengths = np.random.default_rng(settings.seed).integers(settings.min_tokens, settings.max_tokens + 1, len(rows))
    return [
        Labelled(ids=_read(tokenizer, ids, int(length)), labels=[label])
        for ids, label, length in zip(rows, labels, lengths, strict=True)
    ]


def _require_both_labels(reviews: Reviews) -> None:
    found = Counter((held_out(review.text), review.label) for review in reviews.labelled)
    kinds = {(part, label): words for part, words in ((False, "to train on"), (True, "held out")) for label in (0, 1)}
    if len(found) < len(kinds):
        got = ", ".join(f"{found[kind]} {words} with label {kind[1]}" for kind, words in kinds.items())
        raise ValueError(f"prepare: both labels are needed in the training rows and in the hold-out; got {got}")
