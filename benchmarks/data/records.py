"""Rows of data sets: read from files or the hub and checked one by one; every rejected row is reported.

A source is a file (.jsonl, .jsonl.gz, .json with a list, .csv, .parquet) or ``hub:NAME[@CONFIG][#FOLDER][:SPLIT]``, for
example ``hub:openai/summarize_from_feedback@comparisons:train`` or ``hub:Anthropic/hh-rlhf#helpful-base``; the split is
"train" unless named.
"""

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from benchmarks.base.json_files import fingerprint
from rlhf_core.files.file_errors import reading

SHOWN = 3
HUB = re.compile(r"hub:(?P<name>[\w./-]+?)(@(?P<config>[\w.-]+))?(#(?P<folder>[\w./-]+))?(:(?P<split>[\w.-]+))?")

Faults = Literal["drop", "error", "truncate"]
Rejected = Mapping[str, Sequence[str]]
Record = TypeVar("Record")
Kept = TypeVar("Kept")


class RowFault(ValueError):
    """Why one row cannot be used. Rows are counted by this message."""


@dataclass(kw_only=True)
class Sieve(Generic[Kept]):
    """Rows that passed, and how many were left out or cut for which reason, with the first of each."""

    kept: list[Kept] = field(default_factory=list)
    rejected: dict[str, list[str]] = field(default_factory=dict)
    truncated: list[str] = field(default_factory=list)

    def sift(self, source: str, rows: Sequence[Record], use: Callable[[Record], Kept]) -> None:
        """Add ``use(row)`` of every row; a row for which it raises ``RowFault`` is left out and counted.

        Raises:
            ValueError: not one row of the source can be used.
        """
        before = len(self.kept)
        for number, row in enumerate(rows, 1):
            try:
                self.kept.append(use(row))
            except RowFault as fault:
                shown = str(row)[:80].encode(errors="backslashreplace").decode()
                self.rejected.setdefault(str(fault), []).append(f"{source}:{number}: {shown}")
        if len(self.kept) == before:
            reasons = ", ".join(f"{reason} ({some[0]})" for reason, some in self.rejected.items())
            raise ValueError(
                f"{source}: not one usable row of {len(rows)}; left out: {reasons or 'nothing, it is empty'}"
            )

    def summary(self, what: str) -> str:
        """Counts, and the first rows left out for each reason."""
        cut = {"cut to fit": self.truncated} if self.truncated else {}
        return "\n".join([f"{len(self.kept)} {what}", *rejected_lines(self.rejected), *_counted(cut)])

    def require_none_left_out(self) -> None:
        """Raise ValueError, with the summary, where any row was left out."""
        if self.rejected:
            raise ValueError("faulty rows, and faults='error':\n" + "\n".join(rejected_lines(self.rejected)))


def rejected_lines(rejected: Rejected) -> list[str]:
    """A line for each reason, and the first rows under it."""
    return _counted({f"left out, {reason}": rows for reason, rows in rejected.items()})


def _counted(rows: Rejected) -> list[str]:
    return [
        line for why, some in rows.items() for line in (f"{why}: {len(some)}", *(f"    {row}" for row in some[:SHOWN]))
    ]


def read_rows(source: str | Path) -> list[object]:
    """Every row of a source, as it is; a line that is not JSON comes as its text, and bytes that are not UTF-8 as what
    :func:`unwritable` finds.

    Raises:
        FileNotFoundError, ValueError: no such file, an unknown ending, or a file that is not what its ending says.
    """
    hub = HUB.fullmatch(str(source))
    with reading(str(source)):
        if not hub:
            return list(_from_file(Path(source)))
        import datasets

        return list(
            datasets.load_dataset(hub["name"], hub["config"], data_dir=hub["folder"], split=hub["split"] or "train")
        )


def unwritable(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which no file and no tokenizer takes."""
    return any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def require_sources(sources: Sequence[str]) -> None:
    """Raise FileNotFoundError for a source that is not a file and no data set on the hub."""
    for source in sources:
        if not HUB.fullmatch(source) and not Path(source).is_file():
            raise _no_file(source)


def _no_file(source: str | Path) -> FileNotFoundError:
    where = "a data set on the hub is written hub:NAME[@CONFIG][#FOLDER][:SPLIT]"
    return FileNotFoundError(f"no file {source} ({where})")


def as_list(sources: str | list[str]) -> list[str]:
    """One source or several, as a list."""
    return [sources] if isinstance(sources, str) else list(sources)


def source_name(source: str | Path) -> str:
    """How messages and records name a source."""
    return str(source) if HUB.fullmatch(str(source)) else Path(source).name


def fingerprints(sources: Sequence[str | Path]) -> dict[str, str]:
    """SHA-256 of every source by its name, numbered where two files share one; a hub data set enters by its rows."""
    names, found = [source_name(source) for source in sources], {}
    for number, (name, source) in enumerate(zip(names, sources, strict=True), 1):
        of_hub = HUB.fullmatch(str(source))
        parts = (
            (json.dumps(row, sort_keys=True, default=str) for row in read_rows(source)) if of_hub else [Path(source)]
        )
        found[name if names.count(name) == 1 else f"{name} ({number})"] = fingerprint(parts)
    return found


def _from_file(file: Path) -> Iterator[object]:
    if not file.is_file():
        raise _no_file(file)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(file)
    elif file.suffix == ".json":
        whole = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(whole, list):
            raise ValueError(f"{file} must hold a JSON list of rows, got a {type(whole).__name__}")
        yield from whole
    elif file.suffix in (".csv", ".parquet"):
        import datasets

        read: Any = datasets.Dataset.from_csv if file.suffix == ".csv" else datasets.Dataset.from_parquet
        with tempfile.TemporaryDirectory() as cache:
            yield from read(str(file), cache_dir=cache, keep_in_memory=True)
    else:
        raise ValueError(f"{file}: unknown ending; .jsonl, .jsonl.gz, .json, .csv and .parquet are read")


def _json_lines(file: Path) -> Iterator[object]:
    """Read here and not by ``datasets``, which gives up on a whole file for one row of another type."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield line
