"""The models and prompts of positive generation, made from review files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.data.hold_out import by_hold_out, half, held_out
from benchmarks.data.records import fingerprints
from benchmarks.data.reviews import Reviews, read_reviews, review_prompts
from benchmarks.tasks import prepared_folder as prepared
from benchmarks.tasks.preparation_settings import ReviewPreparation
from benchmarks.tasks.starting_models import continuations, from_base, from_scratch, require_layers
from models.texts.prompt_encoding import encode
from models.training import supervised
from models.training.objectives import Labelled


def prepare_positive_generation(settings: ReviewPreparation) -> dict[str, Any]:
    """Make everything ``--task positive_generation --models OUT`` needs, and return the report.

    Raises:
        FileExistsError: the out folder is not empty, or, with ``overwrite``, was not made by a script of ours.
        ValueError: unusable data or models that cannot be combined.
    """
    settings = settings.resolved()
    with prepared.prepared_folder(Path(settings.out), overwrite=settings.overwrite) as folder:
        reviews = read_reviews(settings.sources)
        _require_both_labels(reviews)
        print(reviews.summary(), flush=True)
        report = _build(settings, reviews, folder)
        prepared.write_report(folder, report, settings, fingerprints(settings.sources))
    return report


def _build(settings: ReviewPreparation, reviews: Reviews, folder: Path) -> dict[str, Any]:
    assert settings.reward is not None  # resolved
    kept, tested = by_hold_out(reviews.labelled, lambda review: review.text).values()
    texts = [review.text for review in kept] + list(reviews.unlabelled)
    size, report = settings.max_tokens, dict[str, Any]()
    measured_on = slice(settings.tested)
    if settings.base is not None:
        language_model, tokenizer = from_base(settings.base, context=size)
    else:
        # positions beyond the longest row would never be trained
        language_model, tokenizer = from_scratch(str(settings.size), texts, context=size, seed=settings.seed)
    require_layers(language_model, settings.reward_layers, settings.frozen_layers)
    ids, test_ids = encode(tokenizer, texts), encode(tokenizer, [review.text for review in tested])
    splits = {
        "train": review_prompts((review.text for review in kept), ids[: len(kept)], seed=settings.seed),
        "held_out": review_prompts((review.text for review in tested), test_ids, seed=settings.seed),
    }
    prepared.require_prompts(splits, "they are beginnings of labelled reviews of more than 200 characters")

    with prepared.reported(report, "language_model") as measured:
        read, test_read = ([_read(tokenizer, row, size) for row in some] for some in (ids, test_ids[measured_on]))
        measured.update(
            {"perplexity": supervised.perplexity(language_model, test_read)}
            if settings.language is None  # the base as it is
            else supervised.train_language_model(language_model, read, test_read, settings.language)
        )
    supervised.save(language_model, tokenizer, folder / "policy")

    tests = _snippets(tokenizer, test_ids, [review.label for review in tested], settings)[measured_on]
    for index, name in enumerate(("reward", "gold") if settings.gold else ("reward",)):
        learned = [
            _beginnings(tokenizer, row, review.label, settings)
            for row, review in zip(ids, kept, strict=False)
            if not settings.gold or half(review.text) == index  # two halves that share no review
        ]
        with prepared.reported(report, f"{name}_model") as measured:
            classifier = supervised.new_classifier(
                language_model, seed=settings.seed + index, layers=settings.reward_layers
            )
            supervised.freeze_layers(classifier, settings.frozen_layers)
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
        "tested": len(tests),
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
