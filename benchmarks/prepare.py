"""Language model, reward model and prompts of a task, made from data files.

``python -m benchmarks.prepare positive_generation --data FILES --out DIR [--size NAME | --base MODEL]``

writes DIR/policy and DIR/reward (transformers folders sharing one tokenizer), DIR/prompts.jsonl, DIR/report.json
(perplexity, held-out accuracy, samples) and DIR/run.json.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from benchmarks.atomic import temporary_sibling
from benchmarks.cli import RECORD, fingerprint, parse, run_record, write_json
from benchmarks.reviews import Review, Reviews, half, held_out, read_reviews, review_prompts
from models.objectives import Labelled
from models.training import (
    TrainingSettings,
    model_input,
    new_classifier,
    new_language_model,
    save,
    train_classifier,
    train_language_model,
)

VOCABULARY = 2048
END, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model of one size is made; ``layers``, ``width`` and ``heads`` are those of a GPT-2 from scratch."""

    layers: int
    width: int
    heads: int
    language: TrainingSettings
    reward: TrainingSettings


SIZES: Mapping[str, Recipe] = {
    "micro": Recipe(
        layers=2,
        width=32,
        heads=2,
        language=TrainingSettings(steps=50, learning_rate=4e-3),
        reward=TrainingSettings(steps=50, learning_rate=2e-3),
    ),
    "tiny": Recipe(
        layers=4,
        width=128,
        heads=4,
        language=TrainingSettings(steps=1500, learning_rate=2e-3),
        reward=TrainingSettings(steps=2000, learning_rate=1e-3),
    ),
    "small": Recipe(
        layers=8,
        width=512,
        heads=8,
        language=TrainingSettings(epochs=3, batch_size=32, learning_rate=6e-4),
        reward=TrainingSettings(epochs=1, batch_size=32, learning_rate=1e-4),
    ),
}
BASE_LANGUAGE = TrainingSettings(epochs=1, learning_rate=5e-5)
BASE_REWARD = TrainingSettings(epochs=1, learning_rate=2e-5)


@dataclass(frozen=True, kw_only=True)
class PositiveGeneration:
    """Continue the beginning of a film review so that a sentiment classifier likes it."""

    data: str | list[str]
    """One review file or a list, '[FILE,FILE]' (.jsonl, .jsonl.gz, .csv, .parquet), with columns text and label (1
    positive, 0 negative); files without labels serve the language model only."""
    out: str
    """Folder to write; must be new or empty."""
    size: Literal["micro", "tiny", "small"] | None = None
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
        if self.base is not None:
            language, reward, size = BASE_LANGUAGE, BASE_REWARD, None
        else:
            size = self.size or "tiny"
            language, reward = SIZES[size].language, SIZES[size].reward
        return replace(self, size=size, language=self.language or language, reward=self.reward or reward)


def prepare_positive_generation(settings: PositiveGeneration) -> dict[str, Any]:
    """Make everything ``--task positive_generation --models OUT`` needs, and return the report.

    Raises:
        FileExistsError: the out folder is not empty, or, with ``overwrite``, was not made by a script of ours.
        ValueError: unusable data or models that cannot be combined.
    """
    settings = settings.resolved()
    out = Path(settings.out)
    _require_free(out, settings.overwrite)
    reviews = read_reviews(settings.files())
    _require_both_labels(reviews)
    print(reviews.summary(), flush=True)
    with temporary_sibling(out) as folder:
        report = _build(settings, reviews, folder)
        record = run_record(settings, {Path(file).name: fingerprint([Path(file)]) for file in settings.files()})
        write_json(folder / "report.json", report)
        write_json(folder / RECORD, record)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    return report


def _build(settings: PositiveGeneration, reviews: Reviews, folder: Path) -> dict[str, Any]:
    assert settings.language is not None
    assert settings.reward is not None  # both resolved
    kept = [review for review in reviews.labelled if not held_out(review.text)]
    tested = [review for review in reviews.labelled if held_out(review.text)]
    texts = [review.text for review in kept] + list(reviews.unlabelled)
    language_model, tokenizer = _starting_point(settings, texts)
    size = settings.max_tokens
    ids = _encode(tokenizer, texts)
    test_ids = _encode(tokenizer, [review.text for review in tested])

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

    splits = {
        "train": review_prompts((review.text for review in kept), ids[: len(kept)], seed=settings.seed),
        "held_out": review_prompts((review.text for review in tested), test_ids, seed=settings.seed),
    }
    write_prompts(folder / "prompts.jsonl", splits, tokenizer)
    report["data"] = {
        "labelled": len(reviews.labelled),
        "unlabelled": len(reviews.unlabelled),
        "held_out": len(tested),
        "left_out": {reason: len(rows) for reason, rows in reviews.rejected.items()},
        "hold_out": "labelled reviews whose cleaned text has a SHA-256 divisible by 10",
        "prompts": {split: len(prompts) for split, prompts in splits.items()},
    }
    report["samples"] = _samples(language_model, tokenizer, splits["held_out"][:8], settings)
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


def _starting_point(
    settings: PositiveGeneration, texts: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model before training, and its tokenizer."""
    if settings.base is not None:
        tokenizer = AutoTokenizer.from_pretrained(settings.base)
        return AutoModelForCausalLM.from_pretrained(settings.base, dtype=torch.float32), tokenizer
    assert settings.size is not None  # resolved
    recipe, tokenizer = SIZES[settings.size], byte_level_tokenizer(texts, VOCABULARY)
    model = new_language_model(
        tokenizer,
        layers=recipe.layers,
        width=recipe.width,
        heads=recipe.heads,
        context=settings.max_tokens,  # positions beyond it would never be trained
        init_std=recipe.width**-0.5,
        seed=settings.seed,
    )
    return model, tokenizer


def byte_level_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``vocabulary`` tokens, with tokens of their own for the end of a text and for padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)


def write_prompts(
    file: Path, splits: Mapping[str, Sequence[Sequence[int]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """One JSON object a line: ``split`` ("train" or "held_out"), ``ids``, and ``text`` to read along."""
    with file.open("w", encoding="utf-8") as lines:
        for split, prompts in splits.items():
            for ids in prompts:
                row = {"split": split, "ids": list(ids), "text": tokenizer.decode(ids)}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts))["input_ids"]
    return ids


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


def _samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: PositiveGeneration,
) -> list[str]:
    """Continuations of up to 32 tokens drawn from the whole distribution, to be read."""
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        for ids in prompts:
            drawn = model.generate(  # every sampling setting stated: unset ones come from the model's folder
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=min(32, settings.max_tokens - len(ids)),
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
            texts.append(f"{tokenizer.decode(ids)} | {tokenizer.decode(drawn[0, len(ids) :])}")
    return texts


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


def _require_free(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise FileExistsError(f"{out} is not empty and holds no {RECORD}, so it is not ours; choose another --out")
    if not overwrite:
        raise FileExistsError(f"{out} holds an earlier preparation; choose another --out, or pass --overwrite true")


PREPARATIONS: Mapping[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "positive_generation": (PositiveGeneration, prepare_positive_generation),
}


def main(argv: Sequence[str]) -> None:
    """Command line: the name of a task, then its settings as flags or a YAML file."""
    if not argv or argv[0] not in PREPARATIONS:
        given = argv[0] if argv else "nothing"
        raise SystemExit(f"usage: python -m benchmarks.prepare TASK ...; TASK one of {list(PREPARATIONS)}, got {given}")
    settings_class, prepare = PREPARATIONS[argv[0]]
    settings = parse(settings_class, f"benchmarks.prepare {argv[0]}", list(argv[1:]))
    disable_progress_bar()  # of every model file that is written
    try:
        report = prepare(settings)
    except (FileExistsError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(report["samples"]))


if __name__ == "__main__":
    main(sys.argv[1:])
