"""A user's own prompts: rows with a column ``prompt``, checked one by one, and split into two."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.data.hold_out import text_hash
from benchmarks.data.records import read_rows, source_name
from rlhf_core.names import counted
from rlhf_core.prompts import listed_by_reason, read_prompt
from rlhf_core.types import Row


def read_own_prompts(source: str) -> list[Row]:
    """Every row of a source (see :mod:`~benchmarks.data.records`): ``prompt``, a text, a chat (a list of messages) or
    token ids, and any further columns. Blank lines are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown ending; no row at all; rows that are no such row, whose prompt is empty or stands in an
            earlier row, or that lack a column of the first. All are listed, by file and line,
            with a count of rows for each reason.
    """
    name, rows, problems = source_name(source), list[Row](), dict[str, list[str]]()
    places = dict[str, str]()
    for number, written in enumerate(read_rows(source), 1):
        if isinstance(written, str) and not written.strip():
            continue
        place = f"{name}:{number}"
        try:
            row = _require_row(written)
            if rows:
                _require_columns(row, rows[0], next(iter(places.values())))
            if places.setdefault(prompt_key(row), place) != place:
                raise ValueError(f"has the prompt of {places[prompt_key(row)]} again; remove one")
            rows.append(row)
        except ValueError as problem:
            problems.setdefault(str(problem), []).append(place)
    if problems:
        raise ValueError(listed_by_reason(problems))
    if not rows:
        raise ValueError(f'{source} holds no prompts; write a line {{"prompt": "..."}} for each')
    return rows


def split(rows: Sequence[Row], source: str, held_out: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and those held out, each in the order given. Held out are the tenth of prompts whose hash is
    a multiple of 10 and, where these are fewer than ``held_out``, the next by their hash; so what is held out does not
    depend on the order of rows.

    Raises:
        ValueError: fewer would be left to learn from than are held out.
    """
    if 2 * held_out > len(rows):
        most = len(rows) // 2
        way_out = f"--eval_prompts {most}, or give more prompts" if most else "give at least two"
        raise ValueError(
            f"{source_name(source)} holds {counted(len(rows), 'prompt')}, too few to hold out {held_out} and learn "
            f"from as many: pass {way_out}"
        )
    by_hash = sorted(rows, key=_hold_out_order)
    tenth = sum(_hold_out_order(row)[0] == 0 for row in rows)
    chosen = {prompt_key(row) for row in by_hash[: max(tenth, held_out)]}
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        parts[prompt_key(row) in chosen].append(row)
    return parts


def prompt_key(row: Row) -> str:
    """A prompt as one text."""
    prompt: Any = row["prompt"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def _hold_out_order(row: Row) -> tuple[int, int]:
    number = text_hash(prompt_key(row))
    return number % 10, number


def _require_row(row: object) -> Row:
    """The row, where it holds a prompt.

    Raises:
        ValueError: why it cannot be used, in words that go on from its place.
    """
    if isinstance(row, str):
        raise ValueError(f"is not JSON: {row.strip()[:60]!r}")
    if not isinstance(row, Mapping):
        raise ValueError(f"is not a JSON object: {str(row)[:60]}")
    if "prompt" not in row:
        columns = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"has no column 'prompt'; it has {columns}")
    read_prompt(row)
    prompt = row["prompt"]
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise ValueError("has an empty prompt")
    return row


def _require_columns(row: Row, first: Row, place: str) -> None:
    """Raise ValueError unless the row has the columns of the first, which stands in ``place``."""
    if lacking := sorted(first.keys() - row.keys()):
        raise ValueError(f"has no {', '.join(map(repr, lacking))}, which {place} has")
    if further := sorted(row.keys() - first.keys()):
        raise ValueError(f"has {', '.join(map(repr, further))}, which {place} has not")
