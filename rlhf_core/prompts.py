"""Prompts on their way into a run: encoded, checked all at once, shuffled."""

from collections.abc import Mapping, Sequence, Set
from operator import index
from reprlib import repr as shortened
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.config import PPOConfig
from rlhf_core.streams import stream
from rlhf_core.types import Policy, RewardModel, Sequences, ValidatesIds, ValidatesPrompts

Prompts = Sequence[str] | Sequence[Sequence[int]]
Item = TypeVar("Item")
PADDED = (
    "a tokenizer's padded batch; its padding would become part of the prompts. Give the texts themselves, or the ids "
    "without padding: [ids[mask.bool()].tolist() for ids, mask in zip(batch['input_ids'], batch['attention_mask'])]"
)
NO_IDS = (bytes, bytearray, Mapping, Set)


def encoded(policy: Policy, reward: RewardModel, prompts: Prompts, config: PPOConfig) -> list[list[int]]:
    """Token ids of the prompts, each checked to leave policy and reward model room for the longest response.

    Raises:
        ValueError: no list of prompts, none in it, one that is neither a text nor token ids, or prompts that policy or
            reward model refuse (all of them are listed).
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of them, got one text; for a single prompt give [{prompts!r}]")
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        raise ValueError(f"prompts must be a list of texts or of lists of token ids, got {PADDED}")
    listed = hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__") and getattr(prompts, "shape", None) != ()
    if isinstance(prompts, Mapping) or not listed:
        raise ValueError(f"prompts must be a list of texts or of lists of token ids, got {shortened(prompts)}")
    if not len(prompts):
        raise ValueError("no prompts were given")
    texts = [_text(row, prompt) for row, prompt in enumerate(prompts) if isinstance(prompt, str)]
    given_ids = [_token_ids(row, prompt) for row, prompt in enumerate(prompts) if not isinstance(prompt, str)]
    if texts and given_ids:
        raise ValueError(f"prompts must be all texts or all token ids, got {len(texts)} texts and {len(given_ids)} ids")
    if given_ids and isinstance(policy, ValidatesIds):
        policy.validate_ids(given_ids)
    ids = policy.encode(texts) if texts else given_ids
    policy.validate(ids, config.max_length[1])
    if isinstance(reward, ValidatesPrompts):
        reward.validate(ids, config.max_length[1])
    return ids


def own_texts(prompts: Prompts) -> list[str]:
    """Prompts in their caller's own words; none where they are token ids."""
    return [str(prompt) for prompt in prompts if isinstance(prompt, str)]


def _text(row: int, prompt: str) -> str:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"prompt {row} is not valid Unicode, which no tokenizer takes: {shortened(prompt)}; decode its bytes with "
            "the encoding they were written in"
        ) from None
    return prompt


def _token_ids(row: int, prompt: Any) -> list[int]:
    """Plain integers of a prompt that is no text; anything with an index is one (numpy's and torch's are) but a truth
    value, which would be one of a mask."""
    try:
        if isinstance(prompt, NO_IDS):
            raise TypeError
        tokens = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        if any(isinstance(token, bool) for token in tokens):
            raise TypeError
        return [index(token) for token in tokens]
    except TypeError:
        raise ValueError(
            f"prompt {row} must be a text or a list of token ids (integers), got {shortened(prompt)}"
        ) from None


def shuffled_batch(given: Prompts, config: PPOConfig, step: int) -> Any:
    """The prompts of a step, ``rollout_batch_size / responses_per_prompt``: without replacement within an epoch, in an
    order fixed by the seed and the epoch."""
    prompts = config.rollout_batch_size // config.responses_per_prompt
    return [_shuffled(given, config.seed, step * prompts + place) for place in range(prompts)]


def repeated(given: Sequence[Item], times: int) -> list[Item]:
    """Each prompt ``times`` times, one after the other: the rows that :func:`prompt_groups` finds again."""
    return [prompt for prompt in given for _ in range(times)]


def prompt_groups(sequences: Sequences, times: int) -> Int[Tensor, " batch"]:
    """Number of each row's prompt where :func:`repeated` laid the rows out, so row // times. Rows of one process never
    belong to a group of another's.

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
    return given[stream(seed, "prompts", epoch).permutation(len(given))[place]]
