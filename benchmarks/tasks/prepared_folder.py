"""The folder that ``benchmarks.prepare`` makes for a task: write it as a whole, and check it when reading.

It holds policy/, reward/, perhaps gold/, prompts.jsonl, report.json and run.json.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.base.json_files import write_json
from benchmarks.base.out_folder import is_free
from benchmarks.base.run_folder import RECORD, read_record, require_made_by, run_record, temporary_sibling
from benchmarks.data.hold_out import SPLITS

MADE_BY = "benchmarks.prepare"
PromptRows = dict[str, list[dict[str, Any]]]
"""By split, "train" and "held_out": ``ids`` and what else a task needs to know."""


def require_replaceable(out: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError where a preparation may not be written to ``out``, which is not empty."""
    if not is_free(out):
        require_made_by(out, MADE_BY)
        if not overwrite:
            raise FileExistsError(f"{out} holds an earlier preparation; choose another --out, or pass --overwrite true")


@contextmanager
def prepared_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that appears as ``out`` only when the block ends well.

    Raises:
        FileExistsError: ``out`` is not empty and may not be replaced.
    """
    require_replaceable(out, overwrite=overwrite)
    with temporary_sibling(out) as folder:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)


def counts(rows: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """How many rows stand under each name."""
    return {name: len(some) for name, some in rows.items()}


@contextmanager
def reported(report: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """What a training measured, to be filled: it enters the report under ``name`` with its seconds, and is printed."""
    started, measured = time.perf_counter(), dict[str, Any]()
    yield measured
    report[name] = {**measured, "seconds": time.perf_counter() - started}
    print(f"{name.replace('_', ' ')}: {_said(report[name])}", flush=True)


def _said(measured: Mapping[str, Any]) -> str:
    """Such as "perplexity 709, accuracy 0.5, seconds 31"; what is measured in parts stands in brackets."""
    words = {name.replace("_", " "): value for name, value in measured.items()}
    shown = {name: f"({_said(value)})" if isinstance(value, Mapping) else value for name, value in words.items()}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


def require_prompts(splits: Mapping[str, Sequence[object]], why: str) -> None:
    """Raise ValueError, before anything is trained, where a split would have no prompts."""
    empty = [split for split, prompts in splits.items() if not prompts]
    if empty:
        raise ValueError(f"prepare: no prompts for {' and '.join(empty)}: {why}")


def write_prompts(folder: Path, splits: PromptRows) -> None:
    """``prompts.jsonl``, a JSON object a line, with its split."""
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as lines:
        for split, rows in splits.items():
            for row in rows:
                lines.write(json.dumps({"split": split, **row}, ensure_ascii=False) + "\n")


def write_report(folder: Path, report: Mapping[str, Any], settings: object, sources: Mapping[str, str]) -> None:
    """``report.json`` and ``run.json``; ``sources`` are fingerprints by the name of the data."""
    write_json(folder / "report.json", report)
    write_json(folder / RECORD, run_record(settings, sources, made_by=MADE_BY))


def part(folder: str, name: str) -> Path:
    """A part of a prepared folder; raises FileNotFoundError, with the way to make it, where it is missing."""
    path = Path(folder, name)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; make the folder with: python -m benchmarks.prepare TASK --out {folder}"
        )
    return path


def made_small(models: str | None) -> bool:
    """Whether ``benchmarks.prepare`` made these models from scratch in a size that the paper's settings hardly move."""
    if models is None or not Path(models, RECORD).is_file():
        return False
    record = read_record(Path(models), "settings")
    if record.get("made_by", MADE_BY) != MADE_BY:
        raise ValueError(f"--models {models} was made by {record['made_by']}; give a folder made by {MADE_BY}")
    return record["settings"].get("size") in ("micro", "tiny")


def read_prompts(models: str, columns: Sequence[str] = ("ids",)) -> PromptRows:
    """Rows by split of the ``prompts.jsonl`` in a prepared folder, with token ids in each of ``columns``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line that is no such row, or a split without prompts.
    """
    file = part(models, "prompts.jsonl")
    splits: PromptRows = {split: [] for split in SPLITS}
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                for column in columns:
                    _require_ids(column, row[column])
                splits[row["split"]].append(row)
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{file}:{number} is not a prompt ({error!r}): {line[:80]!r}") from error
    empty = [split for split, prompts in splits.items() if not prompts]
    if empty:
        raise ValueError(f"{file} has no prompts for {', '.join(empty)}")
    return splits


def _require_ids(column: str, ids: object) -> None:
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(f"{column!r} must be a list of token ids")
