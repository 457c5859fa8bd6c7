"""Tokenizers from a folder or the hub, and which ids end a response or have no token."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.weights.source import ModelSource
from rlhf_core.files.file_errors import reading

TOKENIZER_FILE = re.compile(r"tokenizer\.|vocab|tekken|spiece|bpe|sentencepiece|.*\.(model|tiktoken|spm)$")


def load_tokenizer(sources: Sequence[ModelSource]) -> PreTrainedTokenizerBase:
    """A policy's tokenizer, found as :func:`find_tokenizer` does.

    Raises:
        ValueError: none has one, or it ends every text with EOS, after which nothing can be generated.
    """
    tokenizer = find_tokenizer(sources)
    ids = tokenizer("a")["input_ids"]
    if tokenizer.eos_token_id is not None and ids and ids[-1] == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} ends every text with EOS, after which a policy has nothing to "
            "say; set add_eos_token to false in its tokenizer_config.json"
        )
    return tokenizer


def find_tokenizer(sources: Sequence[ModelSource]) -> PreTrainedTokenizerBase:
    """The tokenizer of the first source that has one: an adapter's, else its base model's.

    Raises:
        ValueError: none has one, with the reasons.
    """
    reasons = []
    for source in sources:
        folder = Path(source.name_or_path)
        if folder.is_dir() and not any(TOKENIZER_FILE.match(file.name) for file in folder.iterdir()):
            reasons.append(f"{folder} has no tokenizer files; save the tokenizer of its model there (save_pretrained)")
            continue
        try:
            with reading(source.name_or_path):
                tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name_or_path, **source.code)
        except (OSError, ValueError) as reason:
            reasons.append(str(reason))
            continue
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            reasons.append(f"{source.name_or_path} has no tokenizer files")
            continue
        return tokenizer
    raise ValueError("no tokenizer could be loaded: " + "; ".join(reasons))


def require_same_tokens(who: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    """Raise ValueError, naming the first tokens that differ, where ``who`` reads other tokens in the same ids than the
    policy."""
    one, other = theirs.get_vocab(), ours.get_vocab()
    differing = sorted(token for token in one.keys() | other.keys() if one.get(token) != other.get(token))
    if differing:
        shown = ", ".join(f"{token!r} is {one.get(token)} and {other.get(token)}" for token in differing[:3])
        raise ValueError(
            f"{who} must share the policy's tokenizer, but {len(differing)} of their tokens differ ({shown}); train it "
            "from a model with the policy's tokenizer"
        )


def named_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for a token, added ones included; there may be others below the largest."""
    added: Any = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.get_vocab().values()) | frozenset(added)


def collect_eos_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a response: the tokenizer's, the config's and the generation config's (Llama 3 has three)."""
    found: set[int] = set()
    for owner in (tokenizer, lm.config, lm.generation_config):
        ids = getattr(owner, "eos_token_id", None)
        given = ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
        if not all(type(token) is int for token in given):
            raise ValueError(
                f"eos_token_id of {type(owner).__name__} must be a token id or a list of them, got {ids!r}"
            )
        found |= set(given)
    return tuple(sorted(found))
