"""The models and prompts of summarisation and dialogue, made from demonstrations and comparisons.

A language model (from scratch, or a base model, whole or through adapters) is fine-tuned on demonstrations, responses
only; a Bradley-Terry reward model is fitted to comparisons, in its own prompt template. Prompts are split by a hash of
their text, so no post or question is both learned from and tested on.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.data.preference_records import (
    Tokenised,
    TokenisedPair,
    Tokens,
    read_comparisons,
    read_demonstrations,
    reading,
    split_prompts,
)
from benchmarks.data.records import Faults, fingerprints
from benchmarks.data.reviews import held_out
from benchmarks.data.templates import check_template
from benchmarks.tasks.preparation import (
    base_tokenizer,
    continuations,
    from_base,
    from_scratch,
    prepared_folder,
    require_context,
    require_prompts,
    write_prompts,
    write_report,
)
from benchmarks.tasks.reward_accuracy import by_confidence
from models.training.finetuning import Adapted, adapted_language_model, adapted_reward_model
from models.training.objectives import Completion, Pair
from models.training.supervised import (
    TrainingSettings,
    last_token_scores,
    new_classifier,
    save,
    train_completions,
    train_language_model,
    train_preference_model,
)
from models.weights.adapters import LoraSettings
from models.weights.source import DType, ModelSource

shown = partial(TrainingSettings, progress=True)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How the models of one size are trained; ``language`` comes before the demonstrations, from scratch only."""

    language: TrainingSettings | None
    demonstrations: TrainingSettings
    reward: TrainingSettings


STAGES: Mapping[str, Stages] = {
    "micro": Stages(
        language=TrainingSettings(steps=20, batch_size=4, learning_rate=4e-3),
        demonstrations=TrainingSettings(steps=10, batch_size=4, learning_rate=2e-3),
        reward=TrainingSettings(steps=10, batch_size=4, learning_rate=2e-3),
    ),
    "tiny": Stages(
        language=shown(steps=600, batch_size=8, learning_rate=2e-3),
        demonstrations=shown(steps=150, batch_size=8, learning_rate=1e-3),
        reward=shown(steps=200, batch_size=8, learning_rate=5e-4),
    ),
    "small": Stages(
        language=shown(epochs=3, batch_size=32, learning_rate=6e-4),
        demonstrations=shown(epochs=2, batch_size=32, learning_rate=3e-4),
        reward=shown(epochs=1, batch_size=32, learning_rate=1e-4),
    ),
    "gpt2": Stages(
        language=shown(epochs=3, batch_size=32, learning_rate=6e-4),
        demonstrations=shown(epochs=2, batch_size=32, learning_rate=1e-4),
        reward=shown(epochs=1, batch_size=32, learning_rate=5e-5),
    ),
    "base": Stages(
        language=None,
        demonstrations=shown(epochs=1, batch_size=32, micro_batch_size=4, learning_rate=5e-5),
        reward=shown(epochs=1, batch_size=32, micro_batch_size=4, learning_rate=2e-5),
    ),
    "lora": Stages(
        language=None,
        demonstrations=shown(epochs=1, batch_size=32, micro_batch_size=2, learning_rate=2e-4),
        reward=shown(epochs=1, batch_size=32, micro_batch_size=2, learning_rate=1e-4),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Fine-tune on demonstrations, and fit a reward model to comparisons.

    Data come from files or the hub, in standard or conversational columns (see benchmarks.data.formats).
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
    """Training of the reward model; null takes the recipe of the size or base."""
    seed: int = 0
    """Seed of initial weights."""
    overwrite: bool = False
    """Delete what an earlier preparation left in the out folder."""

    def __post_init__(self) -> None:
        if self.size is not None and self.base is not None:
            raise ValueError(f"prepare: give --size ({self.size}) or --base ({self.base}), not both")
        if self.lora is not None and self.base is None:
            raise ValueError("prepare: lora trains adapters on a base model; give --base")
        if self.lora is None and (self.four_bit or self.dtype != "float32"):
            raise ValueError("prepare: all weights are trained in float32; give --lora.rank for 4-bit or bfloat16")
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

    def sources(self) -> tuple[list[str], list[str]]:
        """Demonstrations and comparisons, as lists."""
        compared = [self.comparisons] if isinstance(self.comparisons, str) else list(self.comparisons)
        if self.demonstrations is None:
            return compared, compared
        shown = self.demonstrations
        return ([shown] if isinstance(shown, str) else list(shown)), compared

    def resolved(self) -> "Preferences":
        """The same with every default that depends on the size or base written out."""
        size = None if self.base is not None else self.size or "tiny"
        stages = STAGES[size or ("base" if self.lora is None else "lora")]
        return replace(
            self,
            size=size,
            language=self.language or stages.language,
            supervised=self.supervised or stages.demonstrations,
            reward=self.reward or stages.reward,
        )


SUMMARISATION: Mapping[str, Any] = {"template": "reddit", "max_prompt_tokens": 512, "max_response_tokens": 64}
DIALOGUE: Mapping[str, Any] = {
    "template": "instruction",
    "reward_template": "human_assistant",
    "max_prompt_tokens": 256,
    "max_response_tokens": 256,
}
"""What each task changes in the defaults above."""


def prepare_preferences(settings: Preferences) -> dict[str, Any]:
    """Make everything ``--task summarisation`` or ``dialogue`` with ``--models OUT`` needs, and return the report.

    Raises:
        FileExistsError: the out folder is not empty, or, with ``overwrite``, was not made by this script.
        ValueError: unusable data or models that cannot be combined.
    """
    settings = settings.resolved()
    shown, compared = settings.sources()
    with prepared_folder(Path(settings.out), overwrite=settings.overwrite) as folder:
        demonstrations = read_demonstrations(shown)
        comparisons = read_comparisons(compared)
        texts = [turn.content for row in demonstrations.kept for turn in row.prompt]
        texts += [row.completion for row in demonstrations.kept]
        start = _starting_point(settings, texts)
        tokens = Tokens(
            tokenizer=start.tokenizer,
            template=settings.template,
            reads=settings.reads,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_response_tokens=settings.max_response_tokens,
            faults=settings.faults,
        )
        responses, pairs = tokens.demonstrations(demonstrations), tokens.pairs(comparisons)
        for sieve, what in ((responses, "demonstrations"), (pairs, "comparisons")):
            print(sieve.summary(what), flush=True)
            if settings.faults == "error":
                sieve.require_none_left_out()
        report = _build(settings, start, _split(responses.kept, pairs.kept), folder)
        report["data"] |= {
            "left_out": {
                what: {reason: len(rows) for reason, rows in sieve.rejected.items()}
                for sieve, what in ((responses, "demonstrations"), (pairs, "comparisons"))
            },
            "cut_to_fit": {"demonstrations": len(responses.truncated), "comparisons": len(pairs.truncated)},
        }
        write_report(folder, report, settings, fingerprints(list(dict.fromkeys([*shown, *compared]))))
    return report


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """What training starts from: a whole model with its tokenizer, or the name of a base for adapters."""

    tokenizer: Any
    model: Any
    source: ModelSource | None


def _starting_point(settings: Preferences, texts: Sequence[str]) -> Start:
    if settings.base is None:
        model, tokenizer = from_scratch(str(settings.size), texts, context=settings.context, seed=settings.seed)
        return Start(model=model, tokenizer=tokenizer, source=None)
    if settings.lora is None:
        model, tokenizer = from_base(settings.base, context=settings.longest)
        return Start(model=model, tokenizer=tokenizer, source=None)
    source = ModelSource(
        name_or_path=settings.base, dtype=settings.dtype, four_bit=settings.four_bit, device=settings.device
    )
    return Start(model=None, tokenizer=base_tokenizer(settings.base), source=source)


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """Rows and prompts by split, "train" and "held_out"."""

    shown: Mapping[str, Sequence[Tokenised]]
    compared: Mapping[str, Sequence[TokenisedPair]]
    prompts: Mapping[str, Sequence[Mapping[str, Any]]]


def _split(responses: Sequence[Tokenised], pairs: Sequence[TokenisedPair]) -> Data:
    """By the hash of each prompt; raises ValueError where a split of anything is empty."""
    parts = {"train": False, "held_out": True}
    shown = {part: [row for row in responses if held_out(row.key) == held] for part, held in parts.items()}
    compared = {part: [row for row in pairs if held_out(row.key) == held] for part, held in parts.items()}
    for what, some in (("demonstrations", shown), ("comparisons", compared)):
        require_prompts(
            some, f"among the {what}; the hold-out is a tenth of the prompts, by their hash: give more rows"
        )
    return Data(shown=shown, compared=compared, prompts=split_prompts([*responses, *pairs]))


def _build(settings: Preferences, start: Start, data: Data, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    language_model, measured = _fine_tuned(settings, start, data)
    report: dict[str, Any] = {"score": "single_logit"}
    report["language_model"] = {**measured, "seconds": time.perf_counter() - started}
    print(f"language model: {report['language_model']}", flush=True)
    _save(language_model, start, folder / "policy")
    write_prompts(folder / "prompts.jsonl", data.prompts)
    held = [row["ids"] for row in data.prompts["held_out"]]
    report["samples"] = continuations(language_model, start.tokenizer, held, seed=settings.seed)

    started = time.perf_counter()
    reward_model, measured = _reward_model(settings, start, language_model, data)
    report["reward_model"] = {**measured, "seconds": time.perf_counter() - started}
    print(f"reward model: {report['reward_model']}", flush=True)
    _save(reward_model, start, folder / "reward")
    report["data"] = {
        "demonstrations": {part: len(rows) for part, rows in data.shown.items()},
        "comparisons": {part: len(rows) for part, rows in data.compared.items()},
        "prompts": {part: len(rows) for part, rows in data.prompts.items()},
        "hold_out": "prompts whose text has a SHA-256 divisible by 10",
    }
    return report


def _fine_tuned(settings: Preferences, start: Start, data: Data) -> tuple[Any, dict[str, Any]]:
    """The language model after whole texts (from scratch only) and demonstrations, and what was measured."""
    assert settings.supervised is not None  # resolved
    measured: dict[str, Any] = {}
    if start.source is not None:
        assert settings.lora is not None
        model = adapted_language_model(start.source, settings.lora, seed=settings.seed, checkpointing=True).adapters
        require_context(model.get_base_model(), str(settings.base), settings.longest)
    else:
        model = start.model
    if settings.language is not None and settings.base is None:
        whole = {
            part: [row.whole for row in data.shown[part]] + [row.best for row in data.compared[part]]
            for part in data.shown
        }
        measured["whole_texts"] = train_language_model(model, whole["train"], whole["held_out"], settings.language)
    rows = {
        part: [Completion(ids=row.whole, prompt_tokens=len(row.prompt)) for row in some]
        for part, some in data.shown.items()
    }
    return model, measured | train_completions(model, rows["train"], rows["held_out"], settings.supervised)


def _reward_model(settings: Preferences, start: Start, language_model: Any, data: Data) -> tuple[Any, dict[str, Any]]:
    """The Bradley-Terry model, and its accuracy beside that of the rule "longer wins"."""
    assert settings.reward is not None  # resolved
    if start.source is not None:
        assert settings.lora is not None
        model = adapted_reward_model(start.source, settings.lora, seed=settings.seed, checkpointing=True).adapters
    else:
        model = new_classifier(language_model, seed=settings.seed, num_labels=1)
    rows = {
        part: [Pair(chosen=reading(row, row.chosen), rejected=reading(row, row.rejected)) for row in some]
        for part, some in data.compared.items()
    }
    measured = train_preference_model(model, rows["train"], rows["held_out"], settings.reward)
    chosen, rejected = (
        last_token_scores(model, [getattr(row, side) for row in rows["held_out"]]) for side in ("chosen", "rejected")
    )
    return model, {**measured, **by_confidence(data.compared["held_out"], (chosen - rejected).tolist())}


def _save(model: Any, start: Start, folder: Path) -> None:
    if start.source is not None:
        Adapted(adapters=model, tokenizer=start.tokenizer).save(str(folder))
    else:
        save(model, start.tokenizer, folder)
