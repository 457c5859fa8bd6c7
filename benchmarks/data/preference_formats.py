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

Columns = Mapping[str, Any]
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SUMMARISE = re.compile(r"\s*TL;DR:\s*$")
UNDECIDED = 5


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


Conversation = tuple[Turn, ...]
"""A conversation that ends with the user's message; a plain text is one such message."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and one response to imitate, or two of which a person preferred the first.

    ``confidence`` is how sure that person was, from 0 (undecided) to 4.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    confidence: int | None = None

    def __str__(self) -> str:
        """The last message, by which a row that is left out is shown."""
        return " ".join(self.prompt[-1].content.split())


def demonstration(row: object) -> Example:
    """A row as something to imitate; of a comparison, the chosen response.

    Raises:
        RowFault: a column is missing, of another type, or empty.
    """
    columns = _columns(row)
    if "summary" in columns:
        return Example(prompt=_prompt(columns), responses=(_text(columns, "summary"),))
    if "completion" in columns:
        return Example(prompt=_prompt(columns), responses=(_reply(columns, "completion"),))
    compared = comparison(row)
    return Example(prompt=compared.prompt, responses=compared.responses[:1])


def comparison(row: object) -> Example:
    """A row as two responses, the chosen one first.

    Raises:
        RowFault: a column is missing, of another type, or empty; both responses are the same; or a score or confidence
            speaks for the other one.
    """
    columns = _columns(row)
    if "summaries" in columns:
        found = _compared_summaries(columns)
    elif "prompt" in columns:
        found = Example(prompt=_prompt(columns), responses=(_reply(columns, "chosen"), _reply(columns, "rejected")))
    else:
        found = _compared_transcripts(columns)
    chosen, rejected = columns.get("score_chosen"), columns.get("score_rejected")
    if isinstance(chosen, int | float) and isinstance(rejected, int | float) and chosen < rejected:
        raise RowFault("'score_chosen' is below 'score_rejected'")
    if len({response.strip() for response in found.responses}) == 1:
        raise RowFault("both responses are the same")
    return found


def key(prompt: Conversation) -> str:
    """One text for a prompt, by which rows are split and duplicates found."""
    return "\n".join(f"{turn.role}: {' '.join(turn.content.split())}" for turn in prompt)


def _columns(row: object) -> Columns:
    if not isinstance(row, Mapping):
        raise RowFault("not a JSON object")
    return row


def _text(columns: Columns, name: str) -> str:
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


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _turns(columns: Columns, name: str) -> Conversation:
    """A conversational column."""
    turns = columns[name]
    if not turns:
        raise RowFault(f"{name!r} is empty")
    roles = ("system", *ROLES.values())
    for turn in turns:
        if not (isinstance(turn, Mapping) and turn.get("role") in roles and isinstance(turn.get("content"), str)):
            raise RowFault(f"{name!r} holds a turn that is not {{'role': {' | '.join(roles)}, 'content': text}}")
        if not turn["content"].strip():
            raise RowFault(f"{name!r} holds an empty turn")
        if unwritable(turn["content"]):
            raise RowFault(f"{name!r} is not valid Unicode")
    return tuple(Turn(role=turn["role"], content=turn["content"]) for turn in turns)


def _prompt(columns: Columns, name: str = "prompt") -> Conversation:
    """A text without its closing ``TL;DR:``, or a list of turns."""
    if name == "prompt" and _is_list(columns.get(name)):
        turns = _turns(columns, name)
        if turns[-1].role != "user":
            raise RowFault("'prompt' does not end with the user's turn")
        return turns
    content = SUMMARISE.sub("", _text(columns, name))
    if not content.strip():
        raise RowFault("'prompt' is empty")
    return (Turn(role="user", content=content),)


def _reply(columns: Columns, name: str) -> str:
    """A response: a text, or a list with one turn of the assistant's."""
    if not _is_list(columns.get(name)):
        return _text(columns, name)
    turns = _turns(columns, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowFault(f"{name!r} is not one turn of the assistant's")
    return turns[0].content


def _compared_summaries(columns: Columns) -> Example:
    summaries, choice = columns["summaries"], columns.get("choice")
    if not _is_list(summaries) or len(summaries) != 2 or type(choice) is not int or choice not in (0, 1):
        raise RowFault("'summaries' are not two, or 'choice' is neither 0 nor 1")
    found = [one.get("text") if isinstance(one, Mapping) else one for one in summaries]
    texts = [_text({"summaries": text}, "summaries") for text in found]
    info, extra = columns.get("info"), columns.get("extra")
    confidence = extra.get("confidence") if isinstance(extra, Mapping) else columns.get("confidence")
    return Example(
        prompt=_prompt(info, "post") if isinstance(info, Mapping) else _prompt(columns),
        responses=(texts[choice], texts[1 - choice]),
        confidence=None if confidence is None else _sureness(confidence, choice),
    )


def _sureness(confidence: object, choice: int) -> int:
    """How far from undecided, 5, a mark is on the two-sided scale from 1, surely the first, to 9, surely the second
    (Stiennon et al. 2020, "Learning to summarize from human feedback")."""
    if type(confidence) is not int or not 1 <= confidence <= 9:
        raise RowFault("'confidence' is not a whole number from 1 to 9")
    if (confidence - UNDECIDED) * (2 * choice - 1) < 0:
        raise RowFault("'confidence' is for one summary and 'choice' for the other")
    return abs(confidence - UNDECIDED)


def _compared_transcripts(columns: Columns) -> Example:
    (prompt, chosen), (other, rejected) = (_transcript(columns, name) for name in ("chosen", "rejected"))
    if prompt != other:
        raise RowFault("'chosen' and 'rejected' answer different prompts")
    return Example(prompt=prompt, responses=(chosen, rejected))


def _transcript(columns: Columns, name: str) -> tuple[Conversation, str]:
    """Everything but the last turn, and the last turn, which must be the assistant's."""
    before, *parts = TURN.split(_text(columns, name))
    turns = [Turn(role=ROLES[parts[i]], content=parts[i + 1].strip()) for i in range(0, len(parts), 2)]
    if before.strip() or len(turns) < 2 or turns[0].role != "user" or turns[-1].role != "assistant":
        raise RowFault(f"{name!r} is not a transcript of the form '\\n\\nHuman: ..\\n\\nAssistant: ..'")
    if not all(turn.content for turn in turns):
        raise RowFault(f"{name!r} holds an empty turn")
    if turns[-2].role != "user":
        raise RowFault(f"{name!r} answers no turn of the human's")
    return tuple(turns[:-1]), turns[-1].content
