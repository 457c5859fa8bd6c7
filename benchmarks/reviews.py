"""Review files: reading, cleaning, refusing bad rows aloud, a fixed hold-out, and prompts."""

import gzip
import hashlib
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LONGEST = 50_000
"""Characters beyond which a row is taken for a mistake."""
SHOWN = 3

Rejected = Mapping[str, Sequence[str]]


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
        lines = [f"{len(self.labelled)} labelled and {len(self.unlabelled)} unlabelled reviews"]
        for reason, rows in self.rejected.items():
            lines += [f"left out, {reason}: {len(rows)}", *(f"    {row}" for row in rows[:SHOWN])]
        return "\n".join(lines)


def clean(text: str) -> str:
    """HTML line breaks and control characters become spaces, and runs of white space one space."""
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE)
    text = "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)
    return " ".join(text.split())


def held_out(text: str) -> bool:
    """Whether a text belongs to the fixed 10 %: SHA-256 of its UTF-8 bytes, as a number, is a multiple of 10."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def half(text: str) -> int:
    """0 or 1: which fixed half a text belongs to, independent of the hold-out."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) // 10 % 2


def read_reviews(files: Sequence[str | Path]) -> Reviews:
    """Read ``.jsonl``, ``.jsonl.gz``, ``.csv`` and ``.parquet`` files with the columns ``text`` and, where the first
    row has one, ``label``.

    Labelled files are read first, so that a text known with its label is not also taken without it.

    Raises:
        FileNotFoundError, ValueError: no such file, an unknown ending, or a file without a single usable row.
    """
    seen: set[str] = set()
    labelled: list[Review] = []
    unlabelled: list[str] = []
    rejected: dict[str, list[str]] = {}
    tables = [(Path(file), list(_rows(Path(file)))) for file in files]
    tables.sort(key=lambda table: not _has_labels(table[1]))  # stable: labelled files first
    for file, rows in tables:
        wants_label, before = _has_labels(rows), len(seen)
        for number, row in enumerate(rows):
            reason = _fault(row, wants_label, seen)
            if reason:
                rejected.setdefault(reason, []).append(f"{file.name}:{number + 1}: {str(row)[:80]}")
                continue
            text = clean(row["text"])  # type: ignore[index,arg-type]  # a mapping with a text, or it had a fault
            seen.add(text)
            if wants_label:
                labelled.append(Review(text=text, label=int(row["label"])))  # type: ignore[index,call-overload]
            else:
                unlabelled.append(text)
        if len(seen) == before:
            reasons = ", ".join(f"{reason} ({some[0]})" for reason, some in rejected.items())
            raise ValueError(
                f"{file}: not one usable row of {len(rows)}; left out: {reasons or 'nothing, it is empty'}"
            )
    return Reviews(labelled=labelled, unlabelled=unlabelled, rejected=rejected)


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
            key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            prompts.append(list(tokens[: int(np.random.default_rng([seed, key]).integers(2, 8))]))
    return prompts


def _has_labels(rows: Sequence[object]) -> bool:
    return bool(rows) and isinstance(rows[0], dict) and "label" in rows[0]


def _fault(row: object, wants_label: bool, seen: set[str]) -> str | None:
    """Why a row cannot be used, or None."""
    if not isinstance(row, dict):
        return "not a JSON object"
    text, label = row.get("text"), row.get("label")
    cleaned = clean(text) if isinstance(text, str) else ""
    checks = (
        ("text" not in row, "no column 'text'"),
        (not isinstance(text, str), "'text' is not a string"),
        (not cleaned, "'text' is empty"),
        (len(cleaned) > LONGEST, f"'text' has more than {LONGEST} characters"),
        (wants_label and "label" not in row, "no column 'label'"),
        (wants_label and (isinstance(label, bool) or label not in (0, 1)), "'label' is neither 0 nor 1"),
        (cleaned in seen, "text seen before"),
    )
    return next((reason for holds, reason in checks if holds), None)


def _rows(file: Path) -> Iterator[object]:
    """The rows of one file, as they are."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        # read here and not by `datasets`, which gives up on a whole file for one row of another type
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    yield line
    elif file.suffix in (".csv", ".parquet"):
        import datasets

        read = datasets.Dataset.from_csv if file.suffix == ".csv" else datasets.Dataset.from_parquet
        with tempfile.TemporaryDirectory() as cache:
            yield from read(str(file), cache_dir=cache, keep_in_memory=True)
    else:
        raise ValueError(f"{file}: unknown ending; .jsonl, .jsonl.gz, .csv and .parquet are read")
