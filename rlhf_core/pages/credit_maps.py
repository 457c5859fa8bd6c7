"""Turn a rollout and the credit of several methods into heat maps, with texts for token ids and without padding."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.pages.token_texts import Decode, TokenText, token_texts
from rlhf_core.types import Rollout, Row

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
    chat, its words are shown as the prompt, and what a template put around them is folded.
    """
    sequences, maps = rollout.sequences, []
    scores = {label: values.tolist() for label, values in token_scores.items()}
    pairs = zip(sequences.prompts(), sequences.responses(), sequences.finished.tolist(), strict=True)
    for row, (prompt, response, finished) in enumerate(pairs):
        texts = token_texts(decode, response, before=prompt, finished=finished)
        before, own, after = prompt_parts(decode([prompt])[0], sequences.given[row] if sequences.given else {})
        maps.append(
            CreditMap(
                prompt=own,
                template=(before, after),
                tokens=tuple(one.text for one in texts),
                counts=tuple(one.tokens for one in texts),
                score=float(rollout.scores[row]),
                rows={label: _joined(values[row], texts) for label, values in scores.items()},
                reference_rows={label: _joined(values[row], texts) for label, values in reference_rows.items()},
            )
        )
    return maps


def prompt_parts(text: str, given: Row) -> tuple[str, str, str]:
    """The text that a model reads before a response, in three parts: before the caller's own words, the words, and
    after. They are the text of ``given["prompt"]``, or a chat's last message; all of ``text`` where it does not hold
    them."""
    own = _own_words(given.get("prompt"))
    start = text.rfind(own) if own else -1
    return ("", text, "") if start < 0 else (text[:start], own, text[start + len(own) :])


def _own_words(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1].get("content") if prompt else None
    return content if isinstance(content, str) else ""


def _joined(values: Sequence[float], texts: Iterable[TokenText]) -> tuple[float, ...]:
    """The sum over the tokens of each text."""
    sums, place = [], 0
    for one in texts:
        sums.append(math.fsum(values[place : place + one.tokens]))
        place += one.tokens
    return tuple(sums)
