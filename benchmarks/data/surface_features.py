"""What is seen of a response without understanding it: a dozen numbers that any reward model should beat.

Annotators prefer longer, tidier texts on average, so a rule on these numbers alone agrees with them more often than
chance does. An accuracy means something only beside that of this rule.
"""

import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.data.preference_formats import Conversation

WORD = re.compile(r"\w+(?:['’]\w+)*")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
FIRST_PERSON = frozenset({"i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"})


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A response without white space around it, its words in lower case, and the words of its prompt."""

    text: str
    words: tuple[str, ...]
    prompt_words: frozenset[str]

    def share_of_words(self, chosen: Callable[[str], bool]) -> float:
        """Of all words; 0 for a text without words."""
        return sum(map(chosen, self.words)) / max(1, len(self.words))

    def share_of_characters(self, chosen: Callable[[str], bool]) -> float:
        """Of all characters; 0 for an empty text."""
        return sum(map(chosen, self.text)) / max(1, len(self.text))


LENGTH = "log characters"
FEATURES: Mapping[str, Callable[[Surface], float]] = {
    LENGTH: lambda seen: math.log1p(len(seen.text)),
    "log words": lambda seen: math.log1p(len(seen.words)),
    "log sentences": lambda seen: math.log1p(len(SENTENCE_END.findall(seen.text))),
    "characters per word": lambda seen: sum(map(len, seen.words)) / max(1, len(seen.words)),
    "different words per word": lambda seen: len(set(seen.words)) / max(1, len(seen.words)),
    "share of words that the prompt has": lambda seen: seen.share_of_words(lambda word: word in seen.prompt_words),
    "share of words in the first person": lambda seen: seen.share_of_words(_first_person),
    "share of punctuation": lambda seen: seen.share_of_characters(lambda character: character in string.punctuation),
    "share of digits": lambda seen: seen.share_of_characters(str.isdigit),
    "share of capitals": lambda seen: seen.share_of_characters(str.isupper),
    "log question marks": lambda seen: math.log1p(seen.text.count("?")),
    "ends with a full stop": lambda seen: float(seen.text.endswith(".")),
}
"""By name. Counts enter as log(1 + count), because the twentieth sentence says less than the second; shares lie in
[0, 1]."""


def surface_features(prompt: Conversation, response: str) -> list[float]:
    """The numbers of ``FEATURES``, in their order, of a response to a conversation."""
    seen = Surface(
        text=response.strip(),
        words=_words(response),
        prompt_words=frozenset(word for turn in prompt for word in _words(turn.content)),
    )
    return [float(feature(seen)) for feature in FEATURES.values()]


def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower()))


def _first_person(word: str) -> bool:
    """Also "I'm" and "we'd"."""
    return re.split("['’]", word)[0] in FIRST_PERSON
