"""Turn a rollout and the credit of several methods into heat maps, with texts for token ids and without padding."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.pages.token_texts import Decode, TokenText, token_texts
from rlhf_core.types import Policy, Rollout, Row

NOTHING: Mapping[str, Sequence[Sequence[float]]] = MappingProxyType({})


def credit_maps(
    rollout: Rollout,
    token_scores: Mapping[str, Tensor],
    decode: Decode,
    *,
    reference_rows: Mapping[str, Sequence[Sequence[float]]] = NOTHING,
) -> list[CreditMap]:
    """A heat map of each response.

    ``token_scores``: (batch, response) tensors by method, in score units. ``decode`` makes texts of rows of token ids:
    ``policy.decode``, or ``policy.decode_with_special``, which names special tokens. ``reference_rows``: further
    numbers by name, a list for each response with a number for each of its tokens. Where the caller wrote a text or a
    chat, its words are shown as the prompt, and what a template put around them is folded. Where a tokenizer does not
    know some of them, what the model read stands below.
    """
    sequences, maps = rollout.sequences, []
    scores = {label: values.tolist() for label, values in token_scores.items()}
    pairs = zip(sequences.prompts(), sequences.responses(), sequences.finished.tolist(), strict=True)
    for row, (prompt, response, finished) in enumerate(pairs):
        texts = token_texts(decode, response, before=prompt, finished=finished)
        read, own = decode([prompt])[0], own_words(sequences.given[row] if sequences.given else {})
        before, shown, after = prompt_parts(read, own)
        maps.append(
            CreditMap(
                prompt=shown,
                template=(before, after),
                read=None if shown in read else read,
                tokens=tuple(one.text for one in texts),
                counts=tuple(one.tokens for one in texts),
                score=float(rollout.scores[row]),
                rows={label: _joined(values[row], texts) for label, values in scores.items()},
                reference_rows={label: _joined(values[row], texts) for label, values in reference_rows.items()},
            )
        )
    return maps


def prompt_parts(text: str, own: str) -> tuple[str, str, str]:
    """What a model reads before a response, in three parts: before the caller's ``own`` words, the words, and after.

    ``text`` may lack spaces at the ends of ``own``. If it lacks the words, they stand alone; if there are no words, all
    of ``text`` is the middle part.
    """
    if not own.strip():
        return "", text, ""
    found = own if own in text else own.strip()
    start = text.rfind(found)
    return ("", own, "") if start < 0 else (text[:start], found, text[start + len(found) :])


def own_words(given: Row) -> str:
    """The words that the caller wrote: the text of ``given["prompt"]``, or a chat's last message. Empty where there are
    none, as where token ids were given."""
    prompt: Any = given.get("prompt")
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1].get("content") if prompt else None
    return content if isinstance(content, str) else ""


def decoder(policy: Policy) -> Decode:
    """How ``policy`` makes texts of ids for a page: with special tokens, such as <unk>, where it can name them."""
    named: Decode = getattr(policy, "decode_with_special", policy.decode)
    return named


def _joined(values: Sequence[float], texts: Iterable[TokenText]) -> tuple[float, ...]:
    """The sum over the tokens of each text."""
    sums, place = [], 0
    for one in texts:
        sums.append(math.fsum(values[place : place + one.tokens]))
        place += one.tokens
    return tuple(sums)
