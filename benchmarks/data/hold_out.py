"""The fixed hold-out, a tenth of all texts: chosen by a hash of the text, so it never changes."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

SPLITS = ("train", "held_out")
Row = TypeVar("Row")


def held_out(text: str) -> bool:
    """Whether a text belongs to the fixed 10 %: SHA-256 of its UTF-8 bytes, as a number, is a multiple of 10."""
    return text_hash(text) % 10 == 0


def half(text: str) -> int:
    """0 or 1: which fixed half a text belongs to, independent of the hold-out."""
    return text_hash(text) // 10 % 2


def folds(texts: Iterable[str], number: int) -> list[int]:
    """The fold, 0 to ``number`` - 1, of each text: equal texts share one, and folds hold equally many different texts,
    give or take one.

    Raises:
        ValueError: fewer different texts than folds.
    """
    texts = list(texts)
    different = sorted(set(texts), key=text_hash)  # an order that has nothing to do with the data's
    if len(different) < number:
        raise ValueError(f"{number} folds need {number} different texts or more, got {len(different)}")
    fold_of = {text: place % number for place, text in enumerate(different)}
    return [fold_of[text] for text in texts]


def text_hash(text: str) -> int:
    """SHA-256 of the text's UTF-8 bytes, as a number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def by_hold_out(rows: Iterable[Row], text: Callable[[Row], str]) -> dict[str, list[Row]]:
    """The rows by split, held out where the hash of their text says so."""
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        splits[SPLITS[held_out(text(row))]].append(row)
    return splits
