"""The tasks: settings small enough to send to a worker process, and what they load there."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import toy
from benchmarks.cli import RECORD, fingerprint
from benchmarks.reviews import held_out, review_prompts
from benchmarks.toy_models import ToyRecipe, toy_models
from models.load import load_policy
from models.policy import CausalPolicy
from models.reward import ClassifierReward, load_reward_model
from rlhf_core.types import Sequences

Prompts = tuple[tuple[int, ...], ...]

TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2048, 256
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


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A task's models, fresh for one run, and its prompts as token ids.

    ``gold`` and ``contributions`` give the true score of every response (prompt included) and what each response token
    adds to it; None where nobody knows them. ``fingerprint`` hashes prompts and weights.
    """

    policy: CausalPolicy
    reward: ClassifierReward
    train_prompts: Prompts
    held_out_prompts: Prompts
    gold: Callable[[Sequences], list[float]] | None
    contributions: Callable[[Sequences], list[list[float]]] | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The embedded task: short reviews whose true per-token credit is known; models are trained on first use."""

    cache: str | None = None
    """Folder that keeps the models (default: the user's cache folder)."""
    recipe: ToyRecipe = field(default_factory=ToyRecipe)

    @property
    def ppo(self) -> Mapping[str, Any]:
        """What it changes in ``PPOConfig``'s defaults."""
        return TOY_PPO

    def load(self) -> Loaded:
        """Train the models or read them from the cache."""
        folder = toy_models(self.cache, self.recipe)
        tokenizer = toy.toy_tokenizer()
        # reviews that no model was trained on: a stream of their own
        reviews = toy.sample_reviews(TRAIN_PROMPTS + HELD_OUT_PROMPTS, seed=self.recipe.seed + 1_000_003)
        ids = [tokenizer.convert_tokens_to_ids(review) for review in reviews]
        texts = [f"{i} {' '.join(review)}" for i, review in enumerate(reviews)]  # short reviews may repeat
        prompts = _frozen(review_prompts(texts, ids, seed=self.recipe.seed, min_characters=0))
        words = tokenizer.convert_ids_to_tokens

        def contributions(sequences: Sequences) -> list[list[float]]:
            return [
                toy.true_contributions(words([*prompt, *response]))[len(prompt) :]
                for prompt, response in zip(sequences.prompts(), sequences.responses(), strict=True)
            ]

        def gold(sequences: Sequences) -> list[float]:
            return [
                toy.true_score(" ".join(words([*prompt, *response])))
                for prompt, response in zip(sequences.prompts(), sequences.responses(), strict=True)
            ]

        return Loaded(
            policy=load_policy(str(folder / "policy")),
            reward=load_reward_model(str(folder / "reward"), score="logit_difference"),
            train_prompts=prompts[:TRAIN_PROMPTS],
            held_out_prompts=prompts[TRAIN_PROMPTS:],
            gold=gold,
            contributions=contributions,
            fingerprint=_fingerprint([str(folder / "policy"), str(folder / "reward")], prompts),
        )


@dataclass(frozen=True, kw_only=True)
class PositiveGeneration:
    """Continue the beginning of a film review so that a sentiment classifier likes it (the paper's first task)."""

    models: str | None = None
    """Folder made by ``benchmarks.prepare``: policy/, reward/ and prompts.jsonl. None: the three names below."""
    policy: str = "lvwerra/gpt2-imdb"
    """Causal language model, folder or hub name."""
    reward: str = "XanderJC/gpt2-rm-imdb"
    """Two-label classifier with the same tokenizer, folder or hub name."""
    data: str = "imdb"
    """Data set on the hub whose training split prompts are taken from."""

    @property
    def ppo(self) -> Mapping[str, Any]:
        """The paper's settings, unless ``models`` were made from scratch in a small size."""
        record = Path(self.models, RECORD) if self.models is not None else None
        if record is None or not record.is_file():
            return {}
        size = json.loads(record.read_text(encoding="utf-8"))["settings"]["size"]
        return SMALL_REVIEWS_PPO if size in ("micro", "tiny") else {}

    def load(self) -> Loaded:
        """Read models and prompts; from the hub only where ``models`` is None.

        Raises:
            FileNotFoundError: ``models`` lacks one of its three parts.
            ValueError: models that cannot be used, or no prompts.
        """
        if self.models is not None:
            policy_name, reward_name = str(_part(self.models, "policy")), str(_part(self.models, "reward"))
            policy = load_policy(policy_name)
            splits = read_prompts(_part(self.models, "prompts.jsonl"))
        else:
            policy_name, reward_name, policy = self.policy, self.reward, load_policy(self.policy)
            splits = _hub_prompts(self.data, policy)
        train, test = _frozen(splits["train"]), _frozen(splits["held_out"])
        return Loaded(
            policy=policy,
            reward=load_reward_model(reward_name, score="logit_difference"),
            train_prompts=train,
            held_out_prompts=test,
            gold=None,
            contributions=None,
            fingerprint=_fingerprint([policy_name, reward_name], train + test),
        )


Task = Toy | PositiveGeneration
TASKS: Mapping[str, Callable[..., Task]] = {"toy": Toy, "positive_generation": PositiveGeneration}


def make_task(name: str, **settings: Any) -> Task:
    """The task of that name; settings that are None are left at their defaults.

    Raises:
        ValueError: an unknown task, or a setting it does not have.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; one of {', '.join(TASKS)}")
    given = {setting: value for setting, value in settings.items() if value is not None}
    unknown = sorted(given.keys() - TASKS[name].__dataclass_fields__.keys())  # type: ignore[attr-defined]
    if unknown:
        raise ValueError(f"task {name!r} has no setting {', '.join(unknown)}")
    return TASKS[name](**given)


def read_prompts(file: Path) -> dict[str, list[list[int]]]:
    """Token ids by split ("train", "held_out") from what ``benchmarks.prepare`` wrote.

    Raises:
        ValueError: a split without prompts.
    """
    splits: dict[str, list[list[int]]] = {"train": [], "held_out": []}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            splits[row["split"]].append(row["ids"])
    empty = [split for split, prompts in splits.items() if not prompts]
    if empty:
        raise ValueError(f"{file} has no prompts for {', '.join(empty)}")
    return splits


def _hub_prompts(data: str, policy: CausalPolicy) -> dict[str, list[list[int]]]:
    import datasets

    texts = list(dict.fromkeys(datasets.load_dataset(data, split="train")["text"]))
    parts = {
        "train": [text for text in texts if not held_out(text)],
        "held_out": [text for text in texts if held_out(text)],
    }
    return {split: review_prompts(some, policy.encode(some)) for split, some in parts.items()}


def _part(folder: str, name: str) -> Path:
    path = Path(folder, name)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; make the folder with: python -m benchmarks.prepare positive_generation "
            f"--data FILE --out {folder}"
        )
    return path


def _frozen(prompts: Iterable[Sequence[int]]) -> Prompts:
    return tuple(tuple(prompt) for prompt in prompts)


def _fingerprint(models: Sequence[str], prompts: Prompts) -> str:
    """SHA-256 of the prompts and of local weights; hub models enter by name."""
    parts: list[str | Path] = [hashlib.sha256(json.dumps(prompts).encode()).hexdigest()]
    for name in models:
        parts += sorted(Path(name).glob("*.safetensors")) or [name]
    return fingerprint(parts)
