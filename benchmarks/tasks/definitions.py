"""The tasks: settings small enough to send to a worker process, and what they load there."""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.base.cli import RECORD, fingerprint, read_record
from benchmarks.data.preference_records import Tokens, read_demonstrations, split_prompts
from benchmarks.data.reviews import held_out, read_reviews, review_prompts
from benchmarks.tasks import toy
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.preparation import MADE_BY
from benchmarks.tasks.toy_models import ToyRecipe, toy_models
from models.policy.causal_policy import CausalPolicy
from models.rewards.prompted_reward import PromptedReward
from rlhf_core.config import PAPER, PaperTask
from rlhf_core.scorers.calling import RewardFunction
from rlhf_core.types import Policy, RewardModel, Sequences

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
SMALL_PREFERENCE_PPO: Mapping[str, Mapping[str, Any]] = {
    "summarisation": {**TOY_PPO, "rollout_batch_size": 8, "max_length": [32, 32]},
    "dialogue": {**TOY_PPO, "max_length": [48, 48]},
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A task's models, fresh for one run, and its prompts as token ids.

    ``gold`` and ``contributions`` give the true score of every response (prompt included) and what each response token
    adds to it; None where nobody knows them. ``fingerprint`` hashes prompts and weights.
    """

    policy: Policy
    reward: RewardModel | RewardFunction
    train_prompts: Sequence[Sequence[int]]
    held_out_prompts: Sequence[Sequence[int]]
    gold: Callable[[Sequences], Sequence[float]] | None
    contributions: Callable[[Sequences], Sequence[Sequence[float]]] | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The embedded task: short reviews whose true per-token credit is known; models are trained on first use."""

    cache: str | None = None
    """Folder that keeps the models (default: the user's cache folder)."""
    recipe: ToyRecipe = field(default_factory=ToyRecipe)
    loading: Loading = field(default_factory=Loading)
    """How the models are held."""

    @property
    def ppo(self) -> Mapping[str, Any]:
        """What it changes in the paper's settings (``PPOConfig.from_paper``)."""
        return TOY_PPO

    def load(self) -> Loaded:
        """Train the models or read them from the cache."""
        folder = toy_models(self.cache, self.recipe)
        tokenizer = toy.toy_tokenizer()
        # reviews that no model was trained on: a stream of their own
        reviews = toy.sample_reviews(TRAIN_PROMPTS + HELD_OUT_PROMPTS, seed=self.recipe.seed + 1_000_003)
        ids = [tokenizer.convert_tokens_to_ids(review) for review in reviews]
        texts = [f"{i} {' '.join(review)}" for i, review in enumerate(reviews)]  # short reviews may repeat
        prompts = frozen(review_prompts(texts, ids, seed=self.recipe.seed, min_characters=0))
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
            policy=self.loading.policy(str(folder / "policy")),
            reward=self.loading.reward(str(folder / "reward"), "logit_difference"),
            train_prompts=prompts[:TRAIN_PROMPTS],
            held_out_prompts=prompts[TRAIN_PROMPTS:],
            gold=gold,
            contributions=contributions,
            fingerprint=task_fingerprint([str(folder / "policy"), str(folder / "reward")], self.loading, prompts),
        )


@dataclass(frozen=True, kw_only=True)
class PositiveGeneration:
    """Continue the beginning of a film review so that a sentiment classifier likes it (the paper's first task)."""

    models: str | None = None
    """Folder made by ``benchmarks.prepare``: policy/, reward/, prompts.jsonl and perhaps gold/. None: the three names
    below."""
    policy: str = "lvwerra/gpt2-imdb"
    """Causal language model, folder or hub name."""
    reward: str = "XanderJC/gpt2-rm-imdb"
    """Two-label classifier with the same tokenizer, folder or hub name."""
    data: str = "hub:imdb"
    """Reviews that prompts are taken from (column text): a file, or a data set on the hub."""
    loading: Loading = field(default_factory=Loading)
    """How the models are held."""

    @property
    def ppo(self) -> Mapping[str, Any]:
        """The paper's settings, unless ``models`` were made from scratch in a small size."""
        return SMALL_REVIEWS_PPO if made_small(self.models) else {}

    def load(self) -> Loaded:
        """Read models and prompts; from the hub only where ``models`` is None.

        Raises:
            FileNotFoundError: ``models`` lacks one of its three parts.
            ValueError: models that cannot be used, or no prompts.
        """
        if self.models is not None:
            policy_name, reward_name = str(part(self.models, "policy")), str(part(self.models, "reward"))
            policy = self.loading.policy(policy_name)
            splits = {split: [row["ids"] for row in rows] for split, rows in read_prompts(self.models).items()}
        else:
            policy_name, reward_name, policy = self.policy, self.reward, self.loading.policy(self.policy)
            splits = _review_prompts(self.data, policy)
        train, test = frozen(splits["train"]), frozen(splits["held_out"])
        return Loaded(
            policy=policy,
            reward=self.loading.reward(reward_name, "logit_difference"),
            train_prompts=train,
            held_out_prompts=test,
            gold=self._gold(),
            contributions=None,
            fingerprint=task_fingerprint([policy_name, reward_name], self.loading, train + test),
        )

    def _gold(self) -> Callable[[Sequences], list[float]] | None:
        """The second reward model, trained on other reviews, where ``prepare --gold true`` made one."""
        if self.models is None or not Path(self.models, "gold").is_dir():
            return None
        judge = self.loading.reward(str(Path(self.models, "gold")), "logit_difference")

        def gold(sequences: Sequences) -> list[float]:
            scores: list[float] = judge.score(sequences, frozenset()).scores.tolist()
            return scores

        return gold


@dataclass(frozen=True, kw_only=True)
class PreferenceTask:
    """Respond to prompts so that a Bradley-Terry reward model, which may read its own prompt template, likes it: the
    paper's summarisation and single-turn dialogue."""

    paper: PaperTask
    """Whose PPO settings (Tables 3 and 4) are the defaults."""
    models: str | None = None
    """Folder made by ``benchmarks.prepare``: policy/, reward/, prompts.jsonl. None: the names below."""
    policy: str
    """Causal language model or adapter, folder or hub name."""
    reward: str
    """Classifier with one logit and the same tokenizer, folder or hub name."""
    data: str
    """Source of prompts where ``models`` is None: a file, or a data set on the hub (see benchmarks.data.records)."""
    template: str
    """Prompt template of the policy (see benchmarks.data.templates), where ``models`` is None."""
    reward_template: str
    """Prompt template of the reward model, where ``models`` is None."""
    max_prompt_tokens: int
    """Longer prompts are left out, where ``models`` is None."""
    loading: Loading = field(default_factory=Loading)
    """How the models are held."""

    @property
    def ppo(self) -> Mapping[str, Any]:
        """The paper's settings, unless ``models`` were made from scratch in a small size."""
        return SMALL_PREFERENCE_PPO[self.paper] if made_small(self.models) else PAPER[self.paper]

    def load(self) -> Loaded:
        """Read models and prompts; from the hub only where ``models`` is None.

        Raises:
            FileNotFoundError: ``models`` lacks one of its three parts.
            ValueError: models that cannot be used, or no prompts.
        """
        if self.models is not None:
            policy_name, reward_name = str(part(self.models, "policy")), str(part(self.models, "reward"))
            policy, splits = self.loading.policy(policy_name), read_prompts(self.models, ("ids", "reward_ids"))
        else:
            policy_name, reward_name, policy = self.policy, self.reward, self.loading.policy(self.policy)
            splits = self._rendered(policy)
        rows = [row for some in splits.values() for row in some]
        train, test = (frozen(row["ids"] for row in splits[split]) for split in ("train", "held_out"))
        renderings = {tuple(row["ids"]): tuple(row["reward_ids"]) for row in rows}
        return Loaded(
            policy=policy,
            reward=PromptedReward(reward=self.loading.reward(reward_name, "single_logit"), renderings=renderings),
            train_prompts=train,
            held_out_prompts=test,
            gold=None,
            contributions=None,
            fingerprint=task_fingerprint(
                [policy_name, reward_name], self.loading, (*train, *test, *renderings.values())
            ),
        )

    def _rendered(self, policy: CausalPolicy) -> dict[str, list[dict[str, Any]]]:
        """Every prompt of the data that fits, in both templates, split by its hash."""
        tokens = Tokens(
            tokenizer=policy.tokenizer,
            template=self.template,
            reads=self.reward_template,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=sys.maxsize,
            faults="drop",
        )
        found = tokens.demonstrations(read_demonstrations([self.data]))
        print(found.summary("prompts"), flush=True)
        return split_prompts(found.kept)


SUMMARISATION = partial(
    PreferenceTask,
    paper="summarisation",
    policy="XanderJC/gptj-sft-tldr-merged",
    reward="Holarissun/trl_rm_tldr_gptj",
    data="hub:openai/summarize_from_feedback@comparisons",
    template="summary",
    reward_template="summary",
    max_prompt_tokens=450,
)
DIALOGUE = partial(
    PreferenceTask,
    paper="dialogue",
    policy="VMware/open-llama-7b-open-instruct",
    reward="weqweasdas/hh_rlhf_rm_open_llama_3b",
    data="hub:Anthropic/hh-rlhf#helpful-base",
    template="instruction",
    reward_template="human_assistant",
    max_prompt_tokens=256,
)
Task = Toy | PositiveGeneration | PreferenceTask
TASKS: Mapping[str, Callable[..., Task]] = {
    "toy": Toy,
    "positive_generation": PositiveGeneration,
    "summarisation": SUMMARISATION,
    "dialogue": DIALOGUE,
}


def make_task(name: str, **settings: Any) -> Task:
    """The task of that name; settings that are None are left at their defaults.

    Raises:
        ValueError: an unknown task, or a setting it does not have.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; one of {', '.join(TASKS)}")
    given = {setting: value for setting, value in settings.items() if value is not None}
    unknown = sorted(given.keys() - inspect.signature(TASKS[name]).parameters.keys())
    if unknown:
        raise ValueError(f"task {name!r} has no setting {', '.join(unknown)}")
    return TASKS[name](**given)


def made_small(models: str | None) -> bool:
    """Whether ``benchmarks.prepare`` made these models from scratch in a size that the paper's settings hardly move."""
    if models is None or not Path(models, RECORD).is_file():
        return False
    record = read_record(Path(models))
    if record.get("made_by", MADE_BY) != MADE_BY:
        raise ValueError(f"--models {models} was made by {record['made_by']}; give a folder made by {MADE_BY}")
    settings = record.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"{Path(models, RECORD)} is damaged: it holds no settings; prepare the folder again")
    return settings.get("size") in ("micro", "tiny")


def read_prompts(models: str, columns: Sequence[str] = ("ids",)) -> dict[str, list[dict[str, Any]]]:
    """Rows by split ("train", "held_out") of the prompts.jsonl that ``benchmarks.prepare`` wrote, with token ids in
    each of ``columns``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line that is no such row, or a split without prompts.
    """
    file = part(models, "prompts.jsonl")
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                for column in columns:
                    _require_ids(column, row[column])
                splits[row["split"]].append(row)
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{file}:{number} is no prompt ({error!r}): {line[:80]!r}") from error
    empty = [split for split, prompts in splits.items() if not prompts]
    if empty:
        raise ValueError(f"{file} has no prompts for {', '.join(empty)}")
    return splits


def _require_ids(column: str, ids: object) -> None:
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(f"{column!r} must be a list of token ids")


def _review_prompts(data: str, policy: CausalPolicy) -> dict[str, list[list[int]]]:
    reviews = read_reviews([data])
    texts = [review.text for review in reviews.labelled] + list(reviews.unlabelled)
    parts = {
        "train": [text for text in texts if not held_out(text)],
        "held_out": [text for text in texts if held_out(text)],
    }
    return {split: review_prompts(some, policy.encode(some)) for split, some in parts.items()}


def part(folder: str, name: str) -> Path:
    """A part of a prepared folder; raises FileNotFoundError, with the way to make it, where it is missing."""
    path = Path(folder, name)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; make the folder with: python -m benchmarks.prepare TASK --out {folder}"
        )
    return path


def frozen(prompts: Iterable[Sequence[int]]) -> Prompts:
    """Prompts as tuples."""
    return tuple(tuple(prompt) for prompt in prompts)


def task_fingerprint(models: Sequence[str], loading: Loading, prompts: Prompts) -> str:
    """SHA-256 of the prompts and of local weights, those of the auxiliaries in the order of their names; hub models
    enter by name."""
    parts: list[str | Path] = [hashlib.sha256(json.dumps(prompts).encode()).hexdigest()]
    for name in (*models, *(where for _, where in sorted(loading.auxiliaries.items()))):
        parts += sorted(Path(name).glob("*.safetensors")) or [name]
    return fingerprint(parts)
