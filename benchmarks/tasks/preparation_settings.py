"""Settings of a preparation. No model library is imported, so a command line is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from benchmarks.data.records import Faults, as_list
from benchmarks.data.templates import check_template
from benchmarks.tasks.training_recipes import PREFERENCES, REVIEWS
from models.training.settings import TrainingSettings
from models.weights.dtype_names import DType
from models.weights.lora_settings import LoraSettings

Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True, kw_only=True)
class ReviewPreparation:
    """Continue the beginning of a film review so that a sentiment classifier likes it."""

    data: str | list[str]
    """One review file or a list, '[FILE,FILE]' (.jsonl, .jsonl.gz, .json, .csv, .parquet, or hub:NAME), with columns
    text and label (1 positive, 0 negative); files without labels serve the language model only."""
    out: str
    """Folder to write; must be new or empty."""
    size: Literal["micro", "tiny", "small", "gpt2"] | None = None
    """Train a GPT-2 of this size from scratch, on a byte-level BPE of 2,048 tokens made here (default: tiny)."""
    base: str | None = None
    """Fine-tune this causal language model (folder or hub name), with its own tokenizer, instead."""
    keep_base: bool = False
    """Take the base as it is for the policy, and train the reward model only."""
    language: TrainingSettings | None = None
    """Training of the language model; null takes the recipe of the size or base. What you give replaces all of it."""
    reward: TrainingSettings | None = None
    """Training of the reward model; null takes the recipe of the size or base. What you give replaces all of it."""
    reward_layers: int | None = None
    """Layers of the language model that the reward model keeps, from the lowest; null keeps all."""
    frozen_layers: int = 0
    """Lowest layers of the reward model that are not trained, and with them the embeddings: large models learn sooner
    and cheaper. 0 trains all."""
    tested: int | None = None
    """Held-out reviews on which perplexity and accuracy are measured; null takes all."""
    max_tokens: int = 96
    """Tokens of a review that are read, from its beginning, as prompts and responses are beginnings."""
    min_tokens: int = 12
    """Shortest beginning of a review that the reward model learns from and is tested on."""
    gold: bool = False
    """Train the reward model on one half of the labelled reviews, and on the other half a second one that PPO never
    sees, OUT/gold: what over-optimisation is measured against."""
    seed: int = 0
    """Seed of initial weights, tested lengths and prompt lengths."""
    overwrite: bool = False
    """Delete what an earlier preparation left in the out folder."""

    def __post_init__(self) -> None:
        if not as_list(self.data):
            raise ValueError("prepare: --data names no file")
        if self.size is not None and self.base is not None:
            raise ValueError(f"prepare: give --size ({self.size}) or --base ({self.base}), not both")
        if self.keep_base and (self.base is None or self.language is not None):
            raise ValueError("prepare: --keep_base true leaves a base as it is; give --base, and no --language")
        _require_at_least(self, reward_layers=1, frozen_layers=0, tested=1)
        if not 1 <= self.min_tokens <= self.max_tokens or self.max_tokens < 16:
            raise ValueError(
                f"prepare: min_tokens {self.min_tokens} must lie between 1 and max_tokens {self.max_tokens}, and "
                "max_tokens be 16 or more: a prompt takes up to 7 of them"
            )

    @property
    def sources(self) -> list[str]:
        """All data, by file or hub name."""
        return as_list(self.data)

    def resolved(self) -> "ReviewPreparation":
        """The same with every default that depends on the size or base written out."""
        size = None if self.base is not None else self.size or "tiny"
        recipe = dict(REVIEWS[size or "base"])
        if self.keep_base:
            del recipe["language"]
        return _with_recipe(replace(self, size=size), recipe)


@dataclass(frozen=True, kw_only=True)
class PreferencePreparation:
    """Fine-tune on demonstrations, and fit a reward model to comparisons.

    Data come from files or the hub, in standard or conversational columns (see benchmarks.data.preference_formats).
    """

    comparisons: str | list[str]
    """Source, or list of sources, of comparisons (prompt, chosen, rejected and kin)."""
    demonstrations: str | list[str] | None = None
    """Source, or list of sources, of demonstrations (prompt, completion and kin); null takes the chosen responses."""
    out: str
    """Folder to write; must be new or empty."""
    size: Literal["micro", "tiny", "small", "gpt2"] | None = None
    """Train a GPT-2 of this size from scratch, on a byte-level BPE of 2,048 tokens made here (default: tiny)."""
    base: str | None = None
    """Fine-tune this causal language model (folder or hub name), with its own tokenizer, instead."""
    keep_base: bool = False
    """Take the base as it is for the policy, and train the reward model only."""
    lora: LoraSettings | None = None
    """Train adapters on the frozen base, for policy and reward model, instead of all weights."""
    four_bit: bool = False
    """Hold the frozen base in 4-bit (needs lora)."""
    dtype: DType = "float32"
    """Precision of the frozen base under adapters."""
    device: str = "cpu"
    """Where an adapted base is trained ("cuda" on a GPU)."""
    template: str = "plain"
    """Prompt template of the policy: a name of benchmarks.data.templates, "chat", or a text with {prompt}."""
    reward_template: str | None = None
    """Prompt template of the reward model; null is the policy's."""
    max_prompt_tokens: int = 256
    """Longest rendered prompt."""
    max_response_tokens: int = 256
    """Longest response, EOS counted."""
    context: int = 1024
    """Positions of a model from scratch."""
    faults: Faults = "drop"
    """Faulty rows: "drop" leaves them out, "error" stops, "truncate" cuts over-long texts and drops the rest."""
    language: TrainingSettings | None = None
    """Training on whole texts, from scratch only; null takes the recipe of the size."""
    supervised: TrainingSettings | None = None
    """Training on demonstrations, responses only; null takes the recipe of the size or base."""
    reward: TrainingSettings | None = None
    """Training of the reward model; null takes the recipe of the size or base. What you give replaces all of it."""
    reward_layers: int | None = None
    """Layers of the language model that the reward model keeps, from the lowest; null keeps all."""
    frozen_layers: int = 0
    """Lowest layers of the reward model that are not trained, and with them the embeddings: large models learn sooner
    and cheaper. 0 trains all."""
    folds: int = 0
    """Cross-validate the reward model in so many folds by prompt: so many more trainings of it, and an accuracy over
    all comparisons. 0 is none: its accuracy is measured on the held-out tenth alone."""
    seed: int = 0
    """Seed of initial weights."""
    overwrite: bool = False
    """Delete what an earlier preparation left in the out folder."""

    def __post_init__(self) -> None:
        if self.size is not None and self.base is not None:
            raise ValueError(f"prepare: give --size ({self.size}) or --base ({self.base}), not both")
        if self.lora is not None and self.base is None:
            raise ValueError("prepare: lora trains adapters on a base model; give --base")
        if self.keep_base and (self.base is None or self.supervised is not None or self.lora is not None):
            raise ValueError(
                "prepare: --keep_base true leaves a base as it is; give --base, no --supervised, no --lora"
            )
        if self.lora is not None and (self.reward_layers is not None or self.frozen_layers):
            raise ValueError("prepare: reward_layers and frozen_layers are for whole models; leave out --lora")
        _require_at_least(self, reward_layers=1, frozen_layers=0)
        if self.lora is None and (self.four_bit or self.dtype != "float32"):
            raise ValueError("prepare: all weights are trained in float32; give --lora.rank for 4-bit or bfloat16")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"prepare: folds must be 0 (no cross-validation) or 2 or more, got {self.folds}")
        if min(self.max_prompt_tokens, self.max_response_tokens) < 2:
            raise ValueError("prepare: max_prompt_tokens and max_response_tokens must be 2 or more")
        if self.base is None and self.longest > self.context:
            raise ValueError(
                f"prepare: max_prompt_tokens {self.max_prompt_tokens} + max_response_tokens "
                f"{self.max_response_tokens} exceed context {self.context}"
            )
        check_template(self.template)
        check_template(self.reads)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def reads(self) -> str:
        """The reward model's template."""
        return self.template if self.reward_template is None else self.reward_template

    @property
    def sources(self) -> list[str]:
        """All data, by file or hub name; each once."""
        return list(dict.fromkeys([*as_list(self.demonstrations or []), *as_list(self.comparisons)]))

    def resolved(self) -> "PreferencePreparation":
        """The same with every default that depends on the size or base written out."""
        size = None if self.base is not None else self.size or "tiny"
        recipe = dict(PREFERENCES[size or ("base" if self.lora is None else "lora")])
        if self.keep_base:
            del recipe["supervised"]
        return _with_recipe(replace(self, size=size), recipe)


TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "summarisation": {"template": "reddit", "max_prompt_tokens": 512, "max_response_tokens": 64},
    "dialogue": {"template": "instruction", "reward_template": "human_assistant"},
}
"""What each task changes in the defaults above."""


def _require_at_least(settings: Any, **least: int) -> None:
    """Raise ValueError where a setting that is not null is below its least value."""
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None and value < smallest:
            raise ValueError(f"prepare: {name} must be {smallest} or more, got {value}")


def _with_recipe(settings: Settings, recipe: Mapping[str, object]) -> Settings:
    """The settings of a preparation, with the recipe's training wherever none is given."""
    return replace(settings, **{name: getattr(settings, name) or value for name, value in recipe.items()})
