"""The contents of a loaded task: its models, its prompts, and a fingerprint of both."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.base.json_files import fingerprint
from benchmarks.tasks.model_settings import Loading
from rlhf_core.prompts import Prompt
from rlhf_core.scorers.signatures import RewardFunction
from rlhf_core.types import Policy, RewardModel, Row, Sequences

PromptIds = tuple[tuple[int, ...], ...]
TaskPrompts = Sequence[Prompt | Row]
"""Prompts of one kind (texts, token ids or chats), or rows that hold one each as ``prompt``, beside further columns."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A task's models, fresh for one run, and its prompts.

    ``gold`` and ``contributions`` give the true score of every response (prompt included) and what each response token
    adds to it; None if they are unknown. ``fingerprint`` hashes prompts and weights.
    """

    policy: Policy
    reward: RewardModel | RewardFunction
    train_prompts: TaskPrompts
    held_out_prompts: TaskPrompts
    fingerprint: str
    gold: Callable[[Sequences], Sequence[float]] | None = None
    contributions: Callable[[Sequences], Sequence[Sequence[float]]] | None = None
    as_read: TaskPrompts = ()
    """All prompts in the order in which their source holds them, where the user wrote that."""

    def in_order(self) -> TaskPrompts:
        """All prompts, so that the number of a row in a message is the one in the user's source."""
        return self.as_read or (*self.train_prompts, *self.held_out_prompts)


def frozen(prompts: Iterable[Sequence[int]]) -> PromptIds:
    """Prompts as tuples."""
    return tuple(tuple(prompt) for prompt in prompts)


def task_fingerprint(models: Sequence[str], loading: Loading, prompts: Sequence[object]) -> str:
    """SHA-256 of the prompts and of local weights, those of the auxiliaries in the order of their names and of a
    critic's model that is named; hub models enter by name."""
    written = json.dumps(prompts, default=str)  # a column may be a date
    parts: list[str | Path] = [hashlib.sha256(written.encode()).hexdigest()]
    of_critic = [] if loading.critic_model is None else [loading.critic_model]
    for name in (*models, *(where for _, where in sorted(loading.auxiliaries.items())), *of_critic):
        parts += sorted(Path(name).glob("*.safetensors")) or [name]
    return fingerprint(parts)
