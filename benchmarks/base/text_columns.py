"""Two columns of plain text that fit the terminal: no colour, nothing cropped."""

import shutil
import textwrap

WIDEST = 100


def in_columns(left: str, right: str, *, column: int) -> str:
    """``left``, and ``right`` wrapped from ``column`` on; where ``left`` is too long it stands on a line of its own."""
    beside = f"{left} ".ljust(column)
    text = wrapped(right, indent=" " * column, least=column + 16)
    return beside + text[column:] if len(beside) == column else f"{left}\n{text}"


def wrapped(text: str, *, indent: str = "", least: int = 40) -> str:
    """Paragraphs wrapped to the terminal's width, between ``least`` and 100 characters; ``code`` marks are left out."""
    width = min(max(shutil.get_terminal_size().columns, least), WIDEST)
    paragraphs = [" ".join(part.replace("``", "").split()) for part in text.split("\n\n")]
    return "\n\n".join(
        textwrap.fill(
            part,
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,  # a path stays one word, to be copied
        )
        for part in paragraphs
    )
