"""Each task's changes to the paper's PPO settings. No model library is imported, so a command line is quick."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.tasks.prepared_folder import made_small
from rlhf_core.config import PAPER, PaperTask, PPOConfig

# Models trained from scratch in minutes: the paper's learning rate would not move them in a few dozen steps.
TOY_PPO: Mapping[str, Any] = {
    "learning_rate": 3e-4,
    "rollout_batch_size": 16,
    "minibatch_size": 4,
    "min_length": 8,
    "max_length": [16, 24],
    "kl": {"init_coef": 0.05},
}
SMALL_REVIEWS_PPO: Mapping[str, Any] = {**TOY_PPO, "learning_rate": 1e-4, "kl": {"init_coef": 0.1}}
SMALL_PREFERENCE_PPO: Mapping[str, Mapping[str, Any]] = {
    "summarisation": {**TOY_PPO, "rollout_batch_size": 8, "max_length": [32, 32]},
    "dialogue": {**TOY_PPO, "max_length": [48, 48]},
}


def review_changes(models: str | None) -> Mapping[str, Any]:
    """The paper's settings as they are, unless ``models`` were made from scratch in a small size."""
    return SMALL_REVIEWS_PPO if made_small(models) else {}


def preference_changes(task: PaperTask, models: str | None) -> Mapping[str, Any]:
    """The paper's settings of the task, unless ``models`` were made from scratch in a small size."""
    return SMALL_PREFERENCE_PPO[task] if made_small(models) else PAPER[task]


def own_changes() -> Mapping[str, Any]:
    """Our defaults in place of the paper's settings, which are for the beginnings of film reviews."""
    return {name: value for name, value in asdict(PPOConfig()).items() if name != "seed"}


CHANGES: Mapping[str, Callable[[str | None], Mapping[str, Any]]] = {
    "toy": lambda _: TOY_PPO,
    "positive_generation": review_changes,
    "summarisation": lambda models: preference_changes("summarisation", models),
    "dialogue": lambda models: preference_changes("dialogue", models),
    "own": lambda _: own_changes(),
}
"""By the task's name; what a task changes may depend on the folder of its models."""
