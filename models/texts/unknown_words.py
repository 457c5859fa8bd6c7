"""Words that a tokenizer has no token for: said once, wherever a user's texts become ids."""

from collections.abc import Sequence
from reprlib import repr as shortened
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.callers import warn_caller
from rlhf_core.names import counted

SAID: set[str] = set()
"""The tokenizers, by folder or hub name, of which this process has been warned: every step encodes its prompts, and a
comparison loads its policy more than once."""
NAMED = 5
"""Unknown words that are named."""


def warn_of_unknown_words(
    tokenizer: PreTrainedTokenizerBase, given: Sequence[Any], ids: list[list[int]]
) -> list[list[int]]:
    """The same ``ids``, which are those of the texts or chats ``given``; warns (UserWarning) where they hold words that
    the tokenizer does not know, the first time only."""
    name = str(tokenizer.name_or_path)
    if name not in SAID and (said := unknown_words(tokenizer, given, ids)):
        SAID.add(name)
        warn_caller(said)
    return ids


def unknown_words(tokenizer: PreTrainedTokenizerBase, given: Sequence[Any], ids: Sequence[Sequence[int]]) -> str:
    """How many of the texts or chats ``given``, whose ``ids`` these are, hold words that the tokenizer has no token
    for, with the first of them; empty where none does.

    A tokenizer whose unknown token has another meaning too (GPT-2's is its EOS) never needs it, and is not asked.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return ""
    counts = [list(row).count(unknown) for row in ids]
    rows = [row for row, count in enumerate(counts) if count]
    if not rows:
        return ""
    first, verb = rows[0], "holds" if len(rows) == 1 else "hold"
    some = f"{len(rows)} of {counted(len(given), 'text')} {verb}"
    of_first = f"{counts[first]} of its {counted(len(ids[first]), 'token')}{_named(tokenizer, given[first])}"
    return (
        f"{some} words that the policy's tokenizer does not know and reads as {tokenizer.unk_token!r}, so the policy "
        f"cannot tell them apart. The first is {shortened(given[first])}: {of_first}. Write the texts in words that it "
        "knows, or choose a policy whose tokenizer knows theirs"
    )


def _named(tokenizer: PreTrainedTokenizerBase, text: Any) -> str:
    """The first words of a text that the tokenizer does not know by themselves; empty for a chat."""
    words = dict.fromkeys(text.split()) if isinstance(text, str) else ()
    unknown = [word for word in words if tokenizer.unk_token_id in tokenizer.encode(word, add_special_tokens=False)]
    return f" ({', '.join(map(shortened, unknown[:NAMED]))})" if unknown else ""
