"""Columns of preference data, in the forms the ecosystem uses, as demonstrations and comparisons.

Standard: ``prompt`` and ``completion``, or ``prompt``, ``chosen`` and ``rejected``, all texts. Conversational: the same
with lists of ``{"role", "content"}`` turns. Also read, because the paper's data come so:

- transcripts ``\\n\\nHuman: ..\\n\\nAssistant: ..`` in ``chosen`` and ``rejected`` (Anthropic's hh-rlhf);
- ``prompt``, ``summary`` (a post and its author's TL;DR);
- ``prompt`` or ``info``, two ``summaries`` and ``choice`` (OpenAI's summarize_from_feedback, "comparisons").

A post's closing ``TL;DR:`` belongs to the prompt template and is taken off here (see :mod:`benchmarks.data.templates`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.data.records import RowFault, unwritable

Row = Mapping[str, Any]
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = ("system", "user", "assistant")
SUMMARISE = re.compile(r"\s*TL;DR:\s*$")
UNDECIDED = 5


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


Prompt = tuple[Turn, ...]
"""A conversation that ends with the user's message; a plain text is one such message."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A prompt and two responses of which a person preferred one; ``confidence`` is how sure the annotator was, from 0
    (undecided) to 4, whichever was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    confidence: int | None = None


def demonstration(row: object) -> Demonstration:
    """A row as something to imitate; of a comparison, the chosen response.

    Raises:
        RowFault: a column is missing, of another type, or empty.
    """
    columns = _columns(row)
    if "summary" in columns:
        return Demonstration(prompt=_post(_text(columns, "prompt")), completion=_text(columns, "summary"))
    if "completion" in columns:
        return Demonstration(prompt=_prompt(columns), completion=_reply(columns, "completion"))
    compared = comparison(row)
    return Demonstration(prompt=compared.prompt, completion=compared.chosen)


def comparison(row: object) -> Comparison:
    """A row as a comparison.

    Raises:
        RowFault: a column is missing, of another type, or empty; both responses are the same; or a score or confidence
            speaks for the other one.
    """
    columns = _columns(row)
    if "summaries" in columns:
        found = _compared_summaries(columns)
    elif "prompt" in columns:
        found = Comparison(
            prompt=_prompt(columns), chosen=_reply(columns, "chosen"), rejected=_reply(columns, "rejected")
        )
    else:
        found = _compared_transcripts(columns)
    _require_not_against(columns)
    if found.chosen.strip() == found.rejected.strip():
        raise RowFault("both responses are the same")
    return found


def key(prompt: Prompt) -> str:
    """One text for a prompt, by which rows are split and duplicates found."""
    return "\n".join(f"{turn.role}: {' '.join(turn.content.split())}" for turn in prompt)


def _columns(row: object) -> Row:
    if not isinstance(row, Mapping):
        raise RowFault("not a JSON object")
    return row


def _text(columns: Row, name: str) -> str:
    if name not in columns:
        raise RowFault(f"no column {name!r}")
    value = columns[name]
    if not isinstance(value, str):
        raise RowFault(f"{name!r} is not a string")
    if not value.strip():
        raise RowFault(f"{name!r} is empty")
    if unwritable(value):
        raise RowFault(f"{name!r} is not valid Unicode")
    return value


def _turns(columns: Row, name: str) -> Prompt:
    """A conversational column."""
    turns = columns[name]
    if not turns:
        raise RowFault(f"{name!r} is empty")
    for turn in turns:
        if not (isinstance(turn, Mapping) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)):
            raise RowFault(f"{name!r} holds a turn that is not {{'role': {' | '.join(ROLES)}, 'content': text}}")
        if not turn["content"].strip():
            raise RowFault(f"{name!r} holds an empty turn")
        if unwritable(turn["content"]):
            raise RowFault(f"{name!r} is not valid Unicode")
    return tuple(Turn(role=turn["role"], content=turn["content"]) for turn in turns)


def _prompt(columns: Row) -> Prompt:
    value = columns.get("prompt")
    if isinstance(value, Sequence) and not isinstance(value, str):
        turns = _turns(columns, "prompt")
        if turns[-1].role != "user":
            raise RowFault("'prompt' does not end with the user's turn")
        return turns
    text = _text(columns, "prompt")
    return _post(text) if SUMMARISE.search(text) else (Turn(role="user", content=text),)


def _post(text: str) -> Prompt:
    content = SUMMARISE.sub("", text)
    if not content.strip():
        raise RowFault("'prompt' is empty")
    return (Turn(role="user", content=content),)


def _reply(columns: Row, name: str) -> str:
    """A response: a text, or a list with one turn of the assistant's."""
    value = columns.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        turns = _turns(columns, name)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise RowFault(f"{name!r} is not one turn of the assistant's")
        return turns[0].content
    return _text(columns, name)


def _compared_summaries(columns: Row) -> Comparison:
    summaries, choice = columns["summaries"], columns.get("choice")
    two = isinstance(summaries, Sequence) and not isinstance(summaries, str) and len(summaries) == 2
    if not two or type(choice) is not int or choice not in (0, 1):
        raise RowFault("'summaries' are not two, or 'choice' is neither 0 nor 1")
    texts = [one.get("text") if isinstance(one, Mapping) else one for one in summaries]
    for text in texts:
        _text({"summaries": text}, "summaries")
    info = columns.get("info")
    post = _text(info, "post") if isinstance(info, Mapping) else _text(columns, "prompt")
    extra = columns.get("extra")
    confidence = extra.get("confidence") if isinstance(extra, Mapping) else columns.get("confidence")
    sure = None if confidence is None else _sureness(confidence, choice)
    return Comparison(prompt=_post(post), chosen=texts[choice], rejected=texts[1 - choice], confidence=sure)


def _sureness(confidence: object, choice: int) -> int:
    """How far from undecided, 5, a mark is on the two-sided scale from 1, surely the first, to 9, surely the second
    (Stiennon et al. 2020, "Learning to summarize from human feedback")."""
    if type(confidence) is not int or not 1 <= confidence <= 9:
        raise RowFault("'confidence' is no whole number from 1 to 9")
    if (confidence - UNDECIDED) * (2 * choice - 1) < 0:
        raise RowFault("'confidence' is for one summary and 'choice' for the other")
    return abs(confidence - UNDECIDED)


def _require_not_against(columns: Row) -> None:
    """Where both responses were given a score, the chosen one's is not the lower."""
    chosen, rejected = (columns.get(f"score_{name}") for name in ("chosen", "rejected"))
    if all(isinstance(score, int | float) for score in (chosen, rejected)) and chosen < rejected:
        raise RowFault("'score_chosen' is below 'score_rejected'")


def _compared_transcripts(columns: Row) -> Comparison:
    (prompt, chosen), (other, rejected) = (_transcript(columns, name) for name in ("chosen", "rejected"))
    if prompt != other:
        raise RowFault("'chosen' and 'rejected' answer different prompts")
    return Comparison(prompt=prompt, chosen=chosen, rejected=rejected)


def _transcript(columns: Row, name: str) -> tuple[Prompt, str]:
    """Everything but the last turn, and the last turn, which must be the assistant's."""
    before, *parts = TURN.split(_text(columns, name))
    turns = [(parts[i], parts[i + 1].strip()) for i in range(0, len(parts), 2)]
    if before.strip() or len(turns) < 2 or turns[0][0] != "Human" or turns[-1][0] != "Assistant":
        raise RowFault(f"{name!r} is no transcript of the form '\\n\\nHuman: ..\\n\\nAssistant: ..'")
    if not all(content for _, content in turns):
        raise RowFault(f"{name!r} holds an empty turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    *prompt, (_, reply) = turns
    if prompt[-1][0] != "Human":
        raise RowFault(f"{name!r} answers no turn of the human's")
    return tuple(Turn(role=roles[speaker], content=content) for speaker, content in prompt), reply
