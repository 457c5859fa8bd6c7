"""The embedded task: short reviews whose true per-token credit is known.

Our own grammar writes product and film reviews of 8 to 40 tokens out of opinions and neutral filler. Every opinion is
a *phrase*: negators and intensifiers, then a sentiment word, within one clause ("nobody called the plot very good" is
one phrase of three words). Its value is that of the word, once more for every intensifier, with its sign flipped by
every negator; the true score of a text is the sum over its phrases. A phrase's value is divided among its words in
proportion to what deleting each of them alone would change: with n intensifiers, 2(n + 1) for a negator, n + 1 for the
sentiment word, 1 for an intensifier. So contributions add up to the score, and each has the sign and, within a phrase,
the ranks of its leave-one-out effect. A modifier without a sentiment word later in its clause, like any other word,
contributes 0.

Everything is defined on any sequence of words, grammatical or not: a trained policy writes both.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"
NEGATORS = ("not", "never", "hardly", "nobody")
INTENSIFIERS = ("very", "really", "truly")
NEAR_NEGATORS = {"{adjective}": ("not", "never", "hardly"), "{verb}": ("never", "hardly")}
FITTING_INTENSIFIERS = {"{adjective}": INTENSIFIERS, "{verb}": ("really", "truly")}
BOUNDARIES = (".", "and", "but", END)
ADJECTIVES: Mapping[int, Sequence[str]] = {
    2: ("great", "superb", "wonderful", "brilliant"),
    1: ("good", "nice", "solid", "clever", "charming", "pleasant"),
    -1: ("bad", "dull", "weak", "clumsy", "bland", "boring"),
    -2: ("awful", "terrible", "dreadful", "horrible"),
}
VERBS: Mapping[int, Sequence[str]] = {
    2: ("loved", "adored"),
    1: ("liked", "enjoyed"),
    -1: ("disliked", "regretted"),
    -2: ("hated", "despised"),
}
VALUES = {word: value for table in (ADJECTIVES, VERBS) for value, words in table.items() for word in words}
MODIFIERS = (*NEGATORS, *INTENSIFIERS)

OPINIONS = ("{part} was {adjective}", "{adjective} {part}", "it was {adjective}", "i {verb} it")
FAR_NEGATION = "nobody called the {part} {adjective}"
SLOTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "film": {
        "part": ("plot", "acting", "story", "cast", "music", "ending", "dialogue", "script"),
        "filler": (
            "we watched it on {day}",
            "it runs for {number} hours",
            "my {person} saw it in {place}",
            "the story opens in {place}",
            "it has {number} songs",
        ),
    },
    "product": {
        "part": ("battery", "screen", "handle", "sound", "price", "fabric", "keyboard", "strap"),
        "filler": (
            "i bought it on {day}",
            "it came in a {colour} box",
            "my {person} uses it in {place}",
            "it has {number} buttons",
            "we ordered the {colour} one",
        ),
    },
}
COMMON: Mapping[str, Sequence[str]] = {
    "day": ("monday", "friday", "sunday"),
    "number": ("two", "three", "four"),
    "person": ("friend", "sister", "father", "neighbour"),
    "place": ("paris", "london", "school", "town"),
    "colour": ("red", "blue", "grey", "green"),
}


def true_contributions(tokens: Sequence[str]) -> list[float]:
    """What every word adds to the true score; sums to :func:`true_score` of the same words, up to rounding."""
    contributions = [0.0] * len(tokens)
    for positions, value in _phrases(tokens):
        intensifiers = sum(tokens[i] in INTENSIFIERS for i in positions)
        shares = {**dict.fromkeys(NEGATORS, 2 * (intensifiers + 1)), **dict.fromkeys(INTENSIFIERS, 1)}
        weights = [shares.get(tokens[i], intensifiers + 1) for i in positions]
        for i, weight in zip(positions, weights, strict=True):
            contributions[i] = value * weight / sum(weights)
    return contributions


def true_score(text: str) -> float:
    """The sum of the values of all phrases of a text (words separated by white space); a whole number."""
    return float(sum(value for _, value in _phrases(text.split())))


def prefix_scores(tokens: Sequence[str]) -> list[float]:
    """True score of every beginning: entry j is that of the first j + 1 words."""
    steps = [0] * len(tokens)
    for positions, value in _phrases(tokens):
        steps[positions[-1]] = value
    return [float(score) for score in accumulate(steps)]


def _phrases(tokens: Sequence[str]) -> Iterator[tuple[list[int], int]]:
    """Positions of the words of each phrase, and its value."""
    modifiers: list[int] = []
    for position, token in enumerate(tokens):
        if token in BOUNDARIES:
            modifiers = []
        elif token in VALUES:
            flips = sum(tokens[i] in NEGATORS for i in modifiers)
            yield [*modifiers, position], VALUES[token] * (-1) ** flips * (1 + len(modifiers) - flips)
            modifiers = []
        elif token in MODIFIERS:
            modifiers.append(position)


def sample_reviews(number: int, *, seed: int) -> list[list[str]]:
    """Reviews drawn one after the other, so that a smaller number gives the beginning of a larger one."""
    generator = np.random.default_rng(seed)
    return [sample_review(generator) for _ in range(number)]


def sample_review(generator: np.random.Generator) -> list[str]:
    """One review of 8 to 40 tokens, ended by EOS, whose true score is not 0; positive and negative equally likely."""
    while True:
        domain = SLOTS[_choice(generator, tuple(SLOTS))]
        mood = _choice(generator, (-1, 1))
        words: list[str] = []
        for _ in range(generator.integers(2, 6)):
            words += [*_sentence(generator, domain, mood), "."]
        words.append(END)
        if 8 <= len(words) <= 40 and true_score(" ".join(words)) != 0:
            return words


def _sentence(generator: np.random.Generator, domain: Mapping[str, Sequence[str]], mood: int) -> list[str]:
    """Filler, one opinion, or two joined; three opinions in four agree with the mood."""
    kind = generator.random()
    if kind < 0.15:
        return _filled(generator, _choice(generator, domain["filler"]), domain)
    words = _opinion(generator, domain, mood)
    if kind > 0.8:
        words += [_choice(generator, ("and", "but")), *_opinion(generator, domain, mood)]
    return words


def _opinion(generator: np.random.Generator, domain: Mapping[str, Sequence[str]], mood: int) -> list[str]:
    """A clause; two in five are negated, so that words alone say little about the mood."""
    sign = mood if generator.random() < 0.75 else -mood
    negated, intensified = generator.random() < 0.4, generator.random() < 0.5
    far = negated and generator.random() < 0.25
    template = FAR_NEGATION if far else _choice(generator, OPINIONS)
    slot, table = ("{verb}", VERBS) if "{verb}" in template else ("{adjective}", ADJECTIVES)
    phrase = [_choice(generator, NEAR_NEGATORS[slot])] if negated and not far else []
    phrase += [_choice(generator, FITTING_INTENSIFIERS[slot])] if intensified else []
    phrase += [_choice(generator, table[(-sign if negated else sign) * _choice(generator, (1, 2))])]
    return _filled(generator, template.replace(slot, " ".join(phrase)), domain)


def _filled(generator: np.random.Generator, template: str, domain: Mapping[str, Sequence[str]]) -> list[str]:
    slots = {**COMMON, **domain}
    return [_choice(generator, slots[word[1:-1]]) if word.startswith("{") else word for word in template.split()]


def _choice(generator: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(generator.integers(len(options)))]


def vocabulary() -> list[str]:
    """Every token, the special ones first."""
    templates = [*OPINIONS, FAR_NEGATION, *(filler for slots in SLOTS.values() for filler in slots["filler"])]
    words = {word for template in templates for word in template.split() if not word.startswith("{")}
    words |= {word for slots in SLOTS.values() for word in slots["part"]}
    words |= {word for options in COMMON.values() for word in options}
    words |= {*MODIFIERS, *VALUES, *BOUNDARIES} - {END}
    return [END, PAD, UNKNOWN, *sorted(words)]


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; EOS is 0, padding 1, unknown 2."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, eos_token=END, pad_token=PAD, unk_token=UNKNOWN
    )


def encode(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> list[int]:
    """Token ids of words, one each."""
    ids = tokenizer.convert_tokens_to_ids(words)
    return [ids] if isinstance(ids, int) else ids
