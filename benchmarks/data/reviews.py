"""Review files: read and clean them, report bad rows, split off a fixed hold-out, and make prompts."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data.hold_out import text_hash
from benchmarks.data.records import Rejected, RowFault, Sieve, read_rows, rejected_lines, source_name, unwritable

LONGEST_REVIEW = 50_000
"""Characters beyond which a row is taken for a mistake."""


@dataclass(frozen=True, kw_only=True)
class Review:
    """One cleaned text; ``label`` is 1 (positive) or 0 (negative)."""

    text: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """What a set of files holds: no text twice, and the rows left out by reason, as "file:row: beginning"."""

    labelled: Sequence[Review]
    unlabelled: Sequence[str]
    rejected: Rejected

    def summary(self) -> str:
        """Counts, and the first rows left out for each reason."""
        counts = f"{len(self.labelled)} labelled and {len(self.unlabelled)} unlabelled reviews"
        return "\n".join([counts, *rejected_lines(self.rejected)])


def clean(text: str) -> str:
    """HTML line breaks and control characters become spaces, and runs of white space one space."""
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE)
    text = "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)
    return " ".join(text.split())


def read_reviews(files: Sequence[str | Path]) -> Reviews:
    """Read sources (see :mod:`~benchmarks.data.records`), columns ``text`` and, where any row has one, ``label``.

    Labelled sources are read first, so that a text known with its label is not also taken without it.

    Raises:
        FileNotFoundError, ValueError: no such file, an unknown ending, or a source without a single usable row.
    """
    seen: set[str] = set()
    sieve: Sieve[Review | str] = Sieve()
    tables = [(source_name(file), read_rows(file)) for file in files]
    tables.sort(key=lambda table: not _has_labels(table[1]))  # stable: labelled files first
    for name, rows in tables:
        use = partial(_review, wants_label=_has_labels(rows), seen=seen)
        sieve.sift(name, rows, use)
    return Reviews(
        labelled=[row for row in sieve.kept if isinstance(row, Review)],
        unlabelled=[row for row in sieve.kept if isinstance(row, str)],
        rejected=sieve.rejected,
    )


def review_prompts(
    texts: Iterable[str], ids: Iterable[Sequence[int]], *, seed: int = 0, min_characters: int = 200
) -> list[list[int]]:
    """The first 2 to 7 tokens of every review of more than ``min_characters`` characters.

    (The paper names the range 2-8 and excludes its upper end.) Each review draws its length from a stream of its own,
    keyed by its text, so that adding or removing reviews changes no other prompt.
    """
    prompts = []
    for text, tokens in zip(texts, ids, strict=True):
        if len(text) > min_characters:
            generator = np.random.default_rng([seed, text_hash(text) >> 192])
            prompts.append(list(tokens[: int(generator.integers(2, 8))]))
    return prompts


def _has_labels(rows: Sequence[object]) -> bool:
    return any(isinstance(row, dict) and "label" in row for row in rows)


def _review(row: object, wants_label: bool, seen: set[str]) -> Review | str:
    """The cleaned text of a row, with its label where one is wanted, entered into ``seen``; raises RowFault where the
    row cannot be used."""
    if not isinstance(row, dict):
        raise RowFault("not a JSON object")
    text, label = row.get("text"), row.get("label")
    cleaned = clean(text) if isinstance(text, str) else ""
    checks = (
        ("text" not in row, "no column 'text'"),
        (not isinstance(text, str), "'text' is not a string"),
        (not cleaned, "'text' is empty"),
        (not cleaned.isprintable() and unwritable(cleaned), "'text' is not valid Unicode"),
        (len(cleaned) > LONGEST_REVIEW, f"'text' has more than {LONGEST_REVIEW} characters"),
        (wants_label and "label" not in row, "no column 'label'"),
        (wants_label and (isinstance(label, bool) or label not in (0, 1)), "'label' is neither 0 nor 1"),
        (cleaned in seen, "text seen before"),
    )
    for holds, reason in checks:
        if holds:
            raise RowFault(reason)
    seen.add(cleaned)
    return Review(text=cleaned, label=int(row["label"])) if wants_label else cleaned
