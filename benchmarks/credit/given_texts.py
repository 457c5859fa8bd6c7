"""Read given responses from a file. Nothing heavy is imported."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BETWEEN_TEXTS = "==="
"""A line of plain text that ends one prompt and response and begins the next."""
BEFORE_RESPONSE = "---"
"""A line of plain text between a prompt and its response."""

Row = Mapping[str, Any]
"""``prompt`` (a text, or a chat as a list of messages), ``response`` (a text), and columns for a reward function."""


def read_texts(path: str | Path, prompt: str | None = None) -> list[Row]:
    """The prompts and responses of a file.

    ``.jsonl``: an object with ``prompt`` and ``response`` on each line, and any further columns. Any other file is
    plain text: a response, to ``prompt``; or a prompt, a line of ``---`` and a response; or several of these with a
    line of ``===`` between them. The line's end before such a line, and that at the end of the file, belong to none.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not UTF-8 text, a row lacks a prompt or a response, or it holds none at all.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"text must be a file (.jsonl, or plain text), and there is none at {path}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    rows = _json_rows(text, path) if file.suffix == ".jsonl" else _plain_rows(text, path, prompt)
    if not rows:
        raise ValueError(f"{path} holds no text: write a response, or JSON lines of prompt and response (.jsonl)")
    return checked_rows(rows)


def checked_rows(rows: Sequence[Any]) -> list[Row]:
    """``rows``, of which each has a prompt and a response.

    Raises:
        ValueError: one that does not; says which and how.
    """
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ValueError(f"text {number} is {row!r}; give a mapping with 'prompt' and 'response'")
        lacking = [name for name in ("prompt", "response") if name not in row]
        if lacking:
            raise ValueError(f"text {number} has no {' and no '.join(map(repr, lacking))}; it has {', '.join(row)}")
        if not isinstance(row["response"], str):
            raise ValueError(f"text {number}: response must be a text, got {row['response']!r}")
    return list(rows)


def _json_rows(text: str, path: str | Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not JSON: {error}") from error
    return rows


def _plain_rows(text: str, path: str | Path, prompt: str | None) -> list[Row]:
    rows: list[Row] = []
    for number, block in enumerate(_split(text.removesuffix("\n"), BETWEEN_TEXTS), 1):
        if not block.strip():
            continue
        parts = _split(block, BEFORE_RESPONSE)
        if len(parts) > 2:
            raise ValueError(
                f"{path}: text {number} has {len(parts) - 1} lines of {BEFORE_RESPONSE}, which parts a prompt from its "
                "response; write it as JSON lines (.jsonl)"
            )
        own = parts[0] if len(parts) == 2 else prompt
        if own is None:
            raise ValueError(
                f"{path}: text {number} has no prompt: give one with --prompt, or write it above the response with a "
                f"line of {BEFORE_RESPONSE} between them"
            )
        rows.append({"prompt": own, "response": parts[-1]})
    return rows


def _split(text: str, mark: str) -> list[str]:
    """The parts of the text between lines that equal ``mark``."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.rstrip() == mark:
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(lines) for lines in parts]
