"""The text of each token of a response, where one character may be split over several tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
"""Texts of rows of token ids, as ``policy.decode`` gives them, or ``policy.decode_with_special``."""
BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""
MOST = 8
"""Tokens that are tried together before their bytes are given up as no text."""


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """The text of one token, or of several tokens whose bytes together make one piece of text."""

    text: str
    tokens: int = 1


def token_texts(decode: Decode, ids: Sequence[int], *, before: Sequence[int] = (), finished: bool) -> list[TokenText]:
    """The texts of ``ids``, whose ``tokens`` add up to ``len(ids)``.

    ``before`` are the ids that they follow: some tokenizers drop the space of the first word that they decode.
    The last token of a response that is ``finished`` is ⟨eos⟩. Another that decodes to nothing is named by its id,
    ⟨50256⟩. Bytes that make no text with any that follow stay U+FFFD.
    """
    row = [*before[-1:], *ids]
    last = len(row) - 1 if finished else len(row)  # where text ends
    said, place, known = [], len(row) - len(ids), 0  # known: where the last word before this place begins
    while place < last:
        text = _added(decode, row, known, place)
        one = (_whole(decode, row[:last], place) if BROKEN in text else None) or TokenText(text=text)
        if one.text.strip():  # spaces alone are decoded to nothing
            known = place
        said.append(one if one.text else TokenText(text=f"⟨{row[place]}⟩"))
        place += one.tokens
    return [*said, TokenText(text="⟨eos⟩")] if finished else said


def _added(decode: Decode, row: Sequence[int], known: int, place: int) -> str:
    """The text that the token at ``place`` adds to that of the tokens from ``known`` on."""
    alone, before, both = decode([row[place : place + 1], row[known:place], row[known : place + 1]])
    return both[len(before) :] if before and BROKEN not in before and both.startswith(before) else alone


def _whole(decode: Decode, ids: Sequence[int], place: int) -> TokenText | None:
    """The fewest tokens from ``place`` on whose bytes are text; None if there are none."""
    lengths = range(2, min(MOST, len(ids) - place) + 1)
    texts = decode([ids[place : place + length] for length in lengths]) if lengths else []
    for length, text in zip(lengths, texts, strict=True):
        if text and BROKEN not in text:
            return TokenText(text=text, tokens=length)
    return None
