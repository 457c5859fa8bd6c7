"""The tasks: settings small enough to send to a worker process, and what they load there."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data.hold_out import SPLITS, by_hold_out
from benchmarks.data.preference_tokens import Tokenisation, read_demonstrations, split_prompts
from benchmarks.data.reviews import read_reviews, review_prompts
from benchmarks.tasks import toy_reviews as toy
from benchmarks.tasks.loaded import Loaded, frozen, task_fingerprint
from benchmarks.tasks.model_loading import held_policy, held_reward
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.own_task import OwnTask
from benchmarks.tasks.ppo_settings import TOY_PPO, preference_changes, review_changes
from benchmarks.tasks.prepared_folder import PromptRows, part, read_prompts
from benchmarks.tasks.toy_models import ToyRecipe, toy_models
from models.policy.causal_policy import CausalPolicy
from models.rewards.prompted_reward import PromptedReward
from rlhf_core.config import PaperTask
from rlhf_core.types import Sequences

TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2048, 256


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The embedded task: short reviews whose true per-token credit is known; models are trained on first use."""

    cache: str | None = None
    """Folder that keeps the models (default: the user's cache folder)."""
    recipe: ToyRecipe = field(default_factory=ToyRecipe)
    loading: Loading = field(default_factory=Loading)
    """How the models are loaded."""

    def __post_init__(self) -> None:
        if self.loading.critic == "adapter" and self.loading.lora is None:  # before any model is trained
            raise ValueError(
                "critic 'adapter' stands beside the policy's adapter, and all weights of the toy task's policy are "
                "trained: give --loading.lora.rank 8, say, or choose critic 'model' or 'shared'"
            )

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
        ids = [toy.encode(tokenizer, review) for review in reviews]
        texts = [f"{i} {' '.join(review)}" for i, review in enumerate(reviews)]  # short reviews may repeat
        prompts = frozen(review_prompts(texts, ids, seed=self.recipe.seed, min_characters=0))

        def contributions(sequences: Sequences) -> list[list[float]]:
            return [toy.true_contributions(words)[prompt:] for prompt, words in read(sequences)]

        def gold(sequences: Sequences) -> list[float]:
            return [toy.true_score(" ".join(words)) for _, words in read(sequences)]

        def read(sequences: Sequences) -> Iterable[tuple[int, list[str]]]:
            """Length of each prompt, and the words of prompt and response."""
            for prompt, response in zip(sequences.prompts(), sequences.responses(), strict=True):
                yield len(prompt), list(tokenizer.convert_ids_to_tokens([*prompt, *response]))

        return Loaded(
            policy=held_policy(self.loading, str(folder / "policy"), reward=str(folder / "reward")),
            reward=held_reward(self.loading, str(folder / "reward"), "logit_difference"),
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
    """How the models are loaded."""

    @property
    def ppo(self) -> Mapping[str, Any]:
        """The paper's settings, unless ``models`` were made from scratch in a small size."""
        return review_changes(self.models)

    def load(self) -> Loaded:
        """Read models and prompts; from the hub only where ``models`` is None.

        Raises:
            FileNotFoundError: ``models`` lacks one of its three parts.
            ValueError: models that cannot be used, or no prompts.
        """
        policy_name, reward_name = _names(self)
        policy = held_policy(self.loading, policy_name, reward=reward_name)
        splits = _review_prompts(self.data, policy) if self.models is None else read_prompts(self.models)
        train, test = (frozen(row["ids"] for row in splits[split]) for split in SPLITS)
        return Loaded(
            policy=policy,
            reward=held_reward(self.loading, reward_name, "logit_difference"),
            train_prompts=train,
            held_out_prompts=test,
            gold=self._gold(),
            fingerprint=task_fingerprint([policy_name, reward_name], self.loading, train + test),
        )

    def _gold(self) -> Callable[[Sequences], Sequence[float]] | None:
        """The second reward model, trained on other reviews, where ``prepare --gold true`` made one."""
        if self.models is None or not Path(self.models, "gold").is_dir():
            return None
        judge = held_reward(self.loading, str(Path(self.models, "gold")), "logit_difference")
        return lambda sequences: judge.score(sequences, frozenset()).scores.tolist()


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
    """How the models are loaded."""

    @property
    def ppo(self) -> Mapping[str, Any]:
        """The paper's settings, unless ``models`` were made from scratch in a small size."""
        return preference_changes(self.paper, self.models)

    def load(self) -> Loaded:
        """As :meth:`PositiveGeneration.load`."""
        policy_name, reward_name = _names(self)
        policy = held_policy(self.loading, policy_name, reward=reward_name)
        splits = self._rendered(policy) if self.models is None else read_prompts(self.models, ("ids", "reward_ids"))
        train, test = (frozen(row["ids"] for row in splits[split]) for split in SPLITS)
        renderings = {tuple(row["ids"]): tuple(row["reward_ids"]) for rows in splits.values() for row in rows}
        return Loaded(
            policy=policy,
            reward=PromptedReward(reward=held_reward(self.loading, reward_name, "single_logit"), renderings=renderings),
            train_prompts=train,
            held_out_prompts=test,
            fingerprint=task_fingerprint(
                [policy_name, reward_name], self.loading, (*train, *test, *renderings.values())
            ),
        )

    def _rendered(self, policy: CausalPolicy) -> PromptRows:
        """Every prompt of the data that fits, in both templates, split by its hash."""
        tokens = Tokenisation(
            tokenizer=policy.tokenizer,
            template=self.template,
            reads=self.reward_template,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=sys.maxsize,
            faults="drop",
        )
        found = tokens.examples(read_demonstrations([self.data]), "demonstrations")
        print(found.summary("prompts"), flush=True)
        return split_prompts(found.kept)


AnyTask = Toy | PositiveGeneration | PreferenceTask | OwnTask
TASKS: Mapping[str, Callable[..., AnyTask]] = {
    "toy": Toy,
    "positive_generation": PositiveGeneration,
    "summarisation": partial(
        PreferenceTask,
        paper="summarisation",
        policy="XanderJC/gptj-sft-tldr-merged",
        reward="Holarissun/trl_rm_tldr_gptj",
        data="hub:openai/summarize_from_feedback@comparisons",
        template="summary",
        reward_template="summary",
        max_prompt_tokens=450,
    ),
    "dialogue": partial(
        PreferenceTask,
        paper="dialogue",
        policy="VMware/open-llama-7b-open-instruct",
        reward="weqweasdas/hh_rlhf_rm_open_llama_3b",
        data="hub:Anthropic/hh-rlhf#helpful-base",
        template="instruction",
        reward_template="human_assistant",
        max_prompt_tokens=256,
    ),
    "own": OwnTask,
}


def make_task(name: str, *, held_out: int | None = None, **settings: Any) -> AnyTask:
    """The task of that name; settings that are None are left at their defaults. ``held_out`` is how many held-out
    prompts are wanted of a task that splits its prompts itself.

    Raises:
        ValueError: an unknown task, or a setting it does not have.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; one of {', '.join(TASKS)}")
    given = {setting: value for setting, value in settings.items() if value is not None}
    taken = inspect.signature(TASKS[name]).parameters
    if held_out is not None and "held_out" in taken:
        given["held_out"] = held_out
    if unknown := sorted(given.keys() - taken.keys()):
        raise ValueError(f"task {name!r} has no setting {', '.join(unknown)}")
    missing = [each.name for each in taken.values() if each.default is each.empty and each.name not in given]
    if missing:
        raise ValueError(f"task {name!r} needs --{', --'.join(missing)}")
    return TASKS[name](**given)


def _names(task: PositiveGeneration | PreferenceTask) -> tuple[str, str]:
    """Where policy and reward model come from."""
    if task.models is None:
        return task.policy, task.reward
    return str(part(task.models, "policy")), str(part(task.models, "reward"))


def _review_prompts(data: str, policy: CausalPolicy) -> PromptRows:
    reviews = read_reviews([data])
    texts = by_hold_out([*(review.text for review in reviews.labelled), *reviews.unlabelled], str)
    return {split: [{"ids": ids} for ids in review_prompts(some, policy.encode(some))] for split, some in texts.items()}
