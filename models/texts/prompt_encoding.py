"""Encode texts as the ids that a model reads, and find unusable prompts before anything is generated."""

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.callers import warn_caller
from rlhf_core.prompts import listed
from rlhf_core.types import Message

LONG_ROWS = 5
"""Rows without room for a response that a message names."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The token ids that a tokenizer puts before (BOS, [CLS]) and after (EOS, [SEP]) every text."""

    before: list[int]
    after: list[int]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> "Frame":
        """Found by encoding one text with and without special tokens."""
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        ids = tokenizer("a")["input_ids"]
        starts = (start for start in range(len(ids)) if ids[start : start + len(bare)] == bare)
        start = next(starts, 0) if bare else len(ids)
        return Frame(before=ids[:start], after=ids[start + len(bare) :])

    def once(self, ids: Sequence[int]) -> slice:
        """The part of a framed text's ids in which nothing of the frame stands twice: a text that brings it along, as
        a chat template writes it, needs no second."""
        head, tail = len(self.before), len(self.after)
        core = ids[head : len(ids) - tail]
        return slice(
            head if core[:head] == self.before else 0,
            len(ids) - (tail if core[-tail:] == self.after else 0) if tail else len(ids),
        )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, with the special tokens the tokenizer puts around them, unless a text brings them itself."""
    frame = Frame.of(tokenizer)
    return [ids[frame.once(ids)] for ids in tokenizer(list(texts))["input_ids"]]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], eos_ids: Sequence[int]
) -> list[list[int]]:
    """Token ids of whole responses: nothing before a text, and EOS after it. Of several ``eos_ids`` that is the
    tokenizer's own, if it is one of them, or else the first; of none, no EOS is put."""
    own = tokenizer.eos_token_id
    eos = [own] if own in eos_ids else list(eos_ids[:1])
    return [ids + eos for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def encode_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of chats as the tokenizer's own template writes them, up to where the assistant answers. What the
    tokenizer puts before every text (BOS) stands before a chat once, whether the template writes it or not; nothing is
    put after it.

    Raises:
        ValueError: there is no template, or it refuses chats; lists their rows.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"prompts are chats, but the tokenizer of {tokenizer.name_or_path!r} has no chat template: set "
            "policy.tokenizer.chat_template (an instruction-tuned model's has one), or write the chats as texts"
        )
    before: list[int] = Frame.of(tokenizer).before
    ids, problems = [], []
    for row, chat in enumerate(chats):
        messages = [dict(message) for message in chat]
        try:
            written: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template is a program of its author's
            problems.append(f"prompt {row}: {type(error).__name__}: {error}")
        else:
            ids.append(written if written[: len(before)] == before else [*before, *written])
    if problems:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} refuses {listed(problems)}")
    return ids


def check_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], eos_ids: Collection[int]
) -> None:
    """Raise ValueError, listing the rows, for ``prompts`` whose ids hold padding; warn where they lack the BOS that the
    ``tokenizer`` puts before every text."""
    before = Frame.of(tokenizer).before
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    meaningful = {*eos_ids, tokenizer.bos_token_id, tokenizer.unk_token_id, *before}
    problems = list(padding_problems(prompts, pad, meaningful))
    if problems:
        raise ValueError(
            f"prompts hold padding, which would become part of them: {listed(problems)}. Give each row without it, "
            "ids[mask.bool()].tolist(), or the texts themselves"
        )
    if any(list(prompt[: len(before)]) != before for prompt in prompts):
        warn_caller(
            f"prompts given as token ids begin without {tokenizer.decode(before)!r} ({before}), the BOS that this "
            "policy's tokenizer puts before every text; they are taken as they are. Put it before them if the "
            "model was trained with it, or give texts"
        )


def padding_problems(prompts: Sequence[Sequence[int]], pad: int | None, meaningful: Collection[int]) -> Iterator[str]:
    """Rows that begin or end with padding, in words.

    Where ``pad`` is among the ``meaningful`` ids (BOS, EOS, unknown), one may well stand at the end of a prompt: it is
    padding if it stands there more than once, or if it makes one length of rows of which some have none of it.
    """
    if pad is None:
        return
    edges = [(_run(row, pad), _run(row[::-1], pad)) for row in prompts]
    level = len({len(row) for row in prompts}) == 1
    made = [level and min(runs) == 0 for runs in zip(*edges, strict=True)]
    for row, runs in enumerate(edges):
        for side, run, evened in zip(("begins", "ends"), runs, made, strict=True):
            if run and (pad not in meaningful or run > 1 or evened):
                yield f"row {row} {side} with {run} of the padding id {pad}"


def _run(ids: Sequence[int], token: int) -> int:
    return len(list(takewhile(lambda one: one == token, ids)))


def prompt_problems(
    prompts: Sequence[Sequence[int]],
    max_lengths: Sequence[int],
    *,
    vocab_size: int,
    context: int | None,
    unnamed: Container[int] = (),
) -> Iterator[str]:
    """What is wrong with the rows, in words: first, all at once, those without room in the ``context`` (tokens; None is
    no limit) for a response of their ``max_lengths`` tokens; then, one by one, those that are empty, or hold ids
    outside 0 to ``vocab_size`` − 1 or among the ``unnamed``."""
    if context is not None:
        yield from _without_room([len(prompt) for prompt in prompts], max_lengths, context)
    for row, prompt in enumerate(prompts):
        outside = [token for token in prompt if not 0 <= token < vocab_size]
        if not prompt:
            yield f"row {row} is empty (give it at least a beginning-of-text token)"
        if outside:
            yield f"row {row} holds ids {outside[:3]} outside the vocabulary of {vocab_size}"
        nameless = [token for token in prompt if token in unnamed and token < vocab_size]
        if nameless:
            yield f"row {row} holds ids {nameless[:3]}, for which the tokenizer has no token"


def _without_room(lengths: Sequence[int], max_lengths: Sequence[int], context: int) -> Iterator[str]:
    """One problem for all rows that are too long: how many, the first few with their lengths, and the way out."""
    pairs = enumerate(zip(lengths, max_lengths, strict=True))
    rows = [(row, f"{length} prompt + {most}") for row, (length, most) in pairs if length + most > context]
    if not rows:
        return
    limit = f"exceed the context {context} of the model's config"
    (first, sizes), more = rows[0], len(rows) - LONG_ROWS
    if len(rows) == 1:
        said = f"row {first}: {sizes} response tokens {limit}"
    else:
        shown = [f"row {first} ({sizes} response tokens)", *(f"row {row} ({size})" for row, size in rows[1:LONG_ROWS])]
        said = f"{len(rows)} of {len(lengths)} rows {limit}: {', '.join(shown)}"
        said += f", and {more} more" if more > 0 else ""
    room = context - max(lengths)
    way_out = f", or allow responses of at most {room} tokens: max_length=({room}, {room})" if room > 0 else ""
    yield f"{said} (shorten or leave out such prompts{way_out})"
