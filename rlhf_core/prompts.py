"""Prompts of a run: read, check all at once, encode and shuffle them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from operator import index
from reprlib import repr as shortened
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.config import PPOConfig
from rlhf_core.random_streams import stream
from rlhf_core.types import (
    EncodesChats,
    Message,
    Policy,
    ReadsRows,
    RewardModel,
    Row,
    Sequences,
    ValidatesIds,
    ValidatesPrompts,
)

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids as a list of integers, or a chat as a list of messages."""


@runtime_checkable
class RowTable(Protocol):
    """Rows that are read when they are needed, as those of a ``datasets.Dataset``."""

    @property
    def column_names(self) -> list[str]:
        """What every row has."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


Prompts = Sequence[Prompt | Row] | RowTable
"""What a caller gives: prompts of one kind, or rows that hold one each as ``prompt``, beside any further columns."""
Kind = Literal["texts", "chats", "lists of token ids"]
Item = TypeVar("Item")
KINDS = "a text, a list of token ids (integers), a chat (a list of messages), or a row (a mapping) with one as 'prompt'"
PADDED = (
    "a tokenizer's padded batch; its padding would become part of the prompts. Give the texts themselves, or the ids "
    "without padding: [ids[mask.bool()].tolist() for ids, mask in zip(batch['input_ids'], batch['attention_mask'])]"
)
NO_IDS = (bytes, bytearray, Mapping, Set)
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Written:
    """One prompt as its caller wrote it, of a kind that is known, and the names of the columns beside it."""

    kind: Kind
    prompt: Any
    columns: frozenset[str] = frozenset()


def encoded(policy: Policy, reward: RewardModel, prompts: Prompts, config: PPOConfig) -> list[list[int]]:
    """Token ids of the prompts, each checked to leave policy and reward model room for the longest response. Of a table
    one row at a time is read.

    Raises:
        ValueError: no list of prompts, none in it, some that are not prompts, of several kinds or without a column that
            others have; a column that the reward asks for and they lack; prompts that policy or reward model refuse.
            All of a kind are listed.
    """
    written = _all_read(prompts)
    kinds = Counter(one.kind for one in written)
    if len(kinds) > 1:
        raise ValueError(f"prompts must be of one kind, got {' and '.join(f'{n} {kind}' for kind, n in kinds.items())}")
    if isinstance(reward, ReadsRows):
        reward.validate_columns(written[0].columns)
    ids = _token_ids_of(policy, written[0].kind, [one.prompt for one in written])
    policy.validate(ids, config.max_length[1])
    if isinstance(reward, ValidatesPrompts):
        reward.validate(ids, config.max_length[1])
    return ids


def own_row(given: Prompt | Row) -> Row:
    """What ids do not tell of a prompt that ``encoded`` took: ``prompt`` in its caller's own words (a text or a chat;
    left out where it is ids), and the further columns."""
    row = given if isinstance(given, Mapping) else {"prompt": given}
    kept = isinstance(row["prompt"], str) or _is_chat(row["prompt"])
    return {name: value for name, value in row.items() if name != "prompt" or kept}


def own_rows(prompts: Prompts, times: int) -> tuple[Row, ...]:
    """:func:`own_row` of each prompt, ``times`` times, as :func:`repeated` lays them out; none at all where the ids
    tell everything."""
    rows = [own_row(prompt) for prompt in prompts]
    return tuple(repeated(rows, times)) if any(rows) else ()


def listed(problems: Sequence[str]) -> str:
    """The first few in one line, and how many more there are."""
    more = len(problems) - SHOWN
    return "; ".join(problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def listed_by_reason(places: Mapping[str, Sequence[str]]) -> str:
    """``places`` holds where each problem was found. Each is named once, at its first place, with the number of the
    others and the last of them."""

    def one(problem: str, where: Sequence[str]) -> str:
        more = len(where) - 1
        return f"{where[0]} {problem}" + (f" (and {more} more likewise, the last {where[-1]})" if more else "")

    return listed([one(problem, where) for problem, where in places.items()])


def _all_read(prompts: Any) -> list[Written]:
    _require_list(prompts)
    written, problems = list[Written](), dict[str, list[str]]()
    for place, given in enumerate(prompts):
        try:
            written.append(read_prompt(given))
        except ValueError as problem:
            problems.setdefault(str(problem), []).append(f"prompt {place}")
    every = {name for one in written for name in one.columns}
    for place, one in enumerate(written if not problems else ()):
        if lacking := every - one.columns:
            lacks = f"has no {', '.join(map(repr, sorted(lacking)))}, which others have"
            problems.setdefault(lacks, []).append(f"prompt {place}")
    if problems:
        raise ValueError(listed_by_reason(problems))
    return written


def _require_list(prompts: Any) -> None:
    """Refuse the common mistakes, each with a message that says what to do."""
    wrong = ""
    if isinstance(prompts, str):
        wrong = f"got one text; for a single prompt give [{prompts!r}]"
    elif isinstance(prompts, Mapping) and "input_ids" in prompts:
        wrong = f"got {PADDED}"
    elif isinstance(prompts, Mapping):
        wrong = (
            f"got a mapping of {shortened(list(prompts))}; for a single row give [row], for columns "
            "datasets.Dataset.from_dict(columns), for a data set of several splits one of them"
        )
    elif hasattr(prompts, "iloc"):
        wrong = "got a pandas object; give frame.to_dict('records'), or column.tolist()"
    elif not (hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")) or getattr(prompts, "shape", None) == ():
        wrong = f"got {shortened(prompts)}, which has no length; of an iterator give list(...)"
    if wrong:
        raise ValueError(f"prompts must be a list of them (texts, lists of token ids, chats or rows), {wrong}")
    if not len(prompts):
        raise ValueError("no prompts were given")


def read_prompt(given: Any) -> Written:
    """Read a prompt, or a row with one. For anything else, raise ValueError with a message that continues "prompt
    3"."""
    if not isinstance(given, Mapping):
        return _read_prompt(given)
    if "prompt" not in given:
        message = " (one message of a chat? A chat is a list of them)" if {*given} == {"role", "content"} else ""
        raise ValueError(f"is a row without 'prompt'; it has {shortened(list(given))}{message}")
    names = [name for name in given if not isinstance(name, str)]
    if names:
        raise ValueError(f"is a row with columns that are not named by texts: {shortened(names)}")
    return replace(_read_prompt(given["prompt"]), columns=frozenset(given) - {"prompt"})


def _read_prompt(prompt: Any) -> Written:
    if isinstance(prompt, str):
        _require_unicode(prompt)
        return Written(kind="texts", prompt=prompt)
    if _is_chat(prompt):
        _require_chat(prompt)
        return Written(kind="chats", prompt=prompt)
    return Written(kind="lists of token ids", prompt=_token_ids(prompt))


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _require_chat(messages: Sequence[Any]) -> None:
    """A response answers the last message, so that it is not the assistant's."""
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str) and len(message) > 1):
            raise ValueError(f"has a message that is not {{'role': a text, 'content': ...}}: {shortened(message)}")
        if isinstance(message.get("content"), str):
            _require_unicode(message["content"])
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "ends with a message of the assistant, and a response answers the last message: leave it out, or, to have "
            "it continued, give tokenizer.apply_chat_template(chat, continue_final_message=True, tokenize=False)"
        )


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"is not valid Unicode, which no tokenizer takes: {shortened(text)}; decode its bytes with the encoding "
            "they were written in"
        ) from None


def _token_ids(prompt: Any) -> list[int]:
    """Plain integers of a prompt that is not text; anything with an index is one (numpy's and torch's are) but a truth
    value, which would be one of a mask."""
    try:
        if isinstance(prompt, NO_IDS):
            raise TypeError
        tokens = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        if any(isinstance(token, bool) for token in tokens):
            raise TypeError
        return [index(token) for token in tokens]
    except TypeError:
        raise ValueError(f"must be {KINDS}, got {shortened(prompt)}") from None


def _token_ids_of(policy: Policy, kind: Kind, prompts: list[Any]) -> list[list[int]]:
    if kind == "texts":
        return policy.encode(prompts)
    if kind == "chats":
        if not isinstance(policy, EncodesChats):
            raise ValueError(f"prompts are chats, and {type(policy).__name__} reads texts and token ids only")
        return policy.encode_chats(prompts)
    if isinstance(policy, ValidatesIds):
        policy.validate_ids(prompts)
    return prompts


def shuffled_batch(given: Prompts, config: PPOConfig, step: int) -> Any:
    """The prompts of a step, ``rollout_batch_size / responses_per_prompt``: without replacement within an epoch, in an
    order fixed by the seed and the epoch."""
    prompts = config.rollout_batch_size // config.responses_per_prompt
    return [_shuffled(given, config.seed, step * prompts + place) for place in range(prompts)]


def repeated(given: Sequence[Item], times: int) -> list[Item]:
    """Each prompt ``times`` times, one after the other: the rows that :func:`prompt_groups` finds again."""
    return [prompt for prompt in given for _ in range(times)]


def prompt_groups(sequences: Sequences, times: int) -> Int[Tensor, " batch"]:
    """Number of each row's prompt where :func:`repeated` laid the rows out, so row // times.

    Raises:
        ValueError: rows that are no multiple of ``times``, or a run of ``times`` rows whose prompts differ.
    """
    prompts = sequences.prompts()
    other = [row for row, prompt in enumerate(prompts) if prompt != prompts[row - row % times]]
    if len(prompts) % times or other:
        wrong = f"row {other[0]} has another prompt" if other else f"the last has {len(prompts) % times}"
        raise ValueError(
            f"expected {times} responses to each prompt, one after the other, in the {len(prompts)} rows, but {wrong}; "
            "give collect or step each prompt once, and they repeat it responses_per_prompt times"
        )
    return torch.arange(len(prompts), device=sequences.response_ids.device) // times


def _shuffled(given: Prompts, seed: int, index: int) -> Any:
    epoch, place = divmod(index, len(given))
    return given[int(stream(seed, "prompts", epoch).permutation(len(given))[place])]
