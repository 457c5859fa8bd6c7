"""Remove an API key from an endpoint's replies, in any spelling."""

import base64
import re
from collections.abc import Iterator
from html import unescape

CODED = re.compile(r"(?:\\+u00|\\+u\{|\\+x|%|=)([0-9a-fA-F]{2})\}?")
"""A character by its number: in JSON, in other languages' texts, in a URL, in mail."""
BASE64, HEX = re.compile("[A-Za-z0-9+/]{8,}"), re.compile("[0-9a-fA-F]{8,}")
FEWEST_LETTERS = 8
"""A key with fewer letters and digits is searched only as it is: in other spellings it would be found everywhere."""
ROUNDS = 4
"""How many layers of escapes are undone."""


def without_key(key: str, text: str) -> str:
    """``text`` with [key] in place of the key. A text that spells the key in another way (escaped, encoded or split) is
    replaced as a whole, because it is unknown which part is the key."""
    if not key:
        return text
    letters, cleaned = _letters(key), text.replace(key, "[key]")
    if len(letters) >= FEWEST_LETTERS and any(letters in _letters(reading) for reading in _readings(cleaned)):
        return "[a text that spells out the key]"
    return cleaned


def _readings(text: str) -> Iterator[str]:
    """The text without its escapes, and what it holds in base64 or hexadecimal."""
    for _ in range(ROUNDS):
        text = CODED.sub(lambda coded: chr(int(coded[1], 16)), unescape(text))
    yield text
    joined = re.sub(r"\s|\\[nrt]", "", text)  # long codes are written in several lines
    for run in BASE64.findall(joined.replace("-", "+").replace("_", "/")):
        for start in range(4):
            whole = run[start : len(run) - (len(run) - start) % 4]
            rest = run[len(whole) + start :]
            yield base64.b64decode(whole + (rest + "==")[:4] * (len(rest) > 1)).decode("latin-1")
    for run in HEX.findall(joined):
        for start in range(2):
            yield bytes.fromhex(run[start : len(run) - (len(run) - start) % 2]).decode("latin-1")


def _letters(text: str) -> str:
    return re.sub("[^A-Za-z0-9]", "", text)
