"""The models and prompts of summarisation and dialogue, made from demonstrations and comparisons.

A language model (from scratch, or a base model, whole or through adapters) is fine-tuned on demonstrations, responses
only, or kept as it is; a Bradley-Terry reward model is fitted to comparisons, in its own prompt template. Prompts are
split by a hash of their text, so no post or question is both learned from and tested on. The reward model's accuracy
stands in the report beside that of a rule on surface features, on the same pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.hold_out import SPLITS, by_hold_out, folds, held_out
from benchmarks.data.preference_tokens import (
    Tokenisation,
    TokenisedExample,
    read_comparisons,
    read_demonstrations,
    split_prompts,
)
from benchmarks.data.records import Sieve, as_list, fingerprints
from benchmarks.reporting.statistics import Array
from benchmarks.tasks import prepared_folder as prepared
from benchmarks.tasks.preference_baselines import baseline_margins
from benchmarks.tasks.preparation_settings import PreferencePreparation
from benchmarks.tasks.reward_accuracy import REWARD_MODEL, by_confidence, compared, compared_lines
from benchmarks.tasks.starting_models import (
    base_tokenizer,
    continuations,
    from_base,
    from_scratch,
    require_context,
    require_layers,
)
from models.training import supervised
from models.training.finetuning import Adapted, adapted_language_model, adapted_reward_model
from models.training.objectives import Completion, Pair
from models.weights.source import ModelSource


def prepare_preferences(settings: PreferencePreparation) -> dict[str, Any]:
    """Make everything ``--task summarisation`` or ``dialogue`` with ``--models OUT`` needs, and return the report.

    Raises:
        FileExistsError: the out folder is not empty, or, with ``overwrite``, was not made by this script.
        ValueError: unusable data or models that cannot be combined.
    """
    settings = settings.resolved()
    compared = as_list(settings.comparisons)
    shown = compared if settings.demonstrations is None else as_list(settings.demonstrations)
    with prepared.prepared_folder(Path(settings.out), overwrite=settings.overwrite) as folder:
        found = {"demonstrations": read_demonstrations(shown), "comparisons": read_comparisons(compared)}
        examples = found["demonstrations"].kept
        texts = [turn.content for row in examples for turn in row.prompt] + [row.responses[0] for row in examples]
        start = _starting_point(settings, texts)
        tokens = Tokenisation(
            tokenizer=start.tokenizer,
            template=settings.template,
            reads=settings.reads,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_response_tokens=settings.max_response_tokens,
            faults=settings.faults,
        )
        sieves = {what: tokens.examples(some, what) for what, some in found.items()}
        for what, sieve in sieves.items():
            print(sieve.summary(what), flush=True)
            if settings.faults == "error":
                sieve.require_none_left_out()
        report = _build(settings, start, sieves, folder)
        prepared.write_report(folder, report, settings, fingerprints(settings.sources))
    return report


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """What training starts from: a whole model with its tokenizer, or the name of a base for adapters."""

    tokenizer: Any
    model: Any
    source: ModelSource | None

    def save(self, model: Any, folder: Path) -> None:
        """Write what was made of it, whole or an adapter."""
        if self.source is not None:
            Adapted(adapters=model, tokenizer=self.tokenizer).save(str(folder))
        else:
            supervised.save(model, self.tokenizer, folder)


def _starting_point(settings: PreferencePreparation, texts: Sequence[str]) -> Start:
    if settings.lora is not None:
        base = str(settings.base)  # which adapters need
        source = ModelSource(
            name_or_path=base, dtype=settings.dtype, four_bit=settings.four_bit, device=settings.device
        )
        return Start(model=None, tokenizer=base_tokenizer(base), source=source)
    if settings.base is None:
        model, tokenizer = from_scratch(str(settings.size), texts, context=settings.context, seed=settings.seed)
    else:
        model, tokenizer = from_base(settings.base, context=settings.longest)
    require_layers(model, settings.reward_layers, settings.frozen_layers)
    return Start(model=model, tokenizer=tokenizer, source=None)


SIDES = ("chosen", "rejected")
Split = Mapping[str, Sequence[TokenisedExample]]


def _split(rows: Sequence[TokenisedExample], what: str) -> Split:
    """By the hash of each prompt; raises ValueError where a split is empty."""
    splits = by_hold_out(rows, lambda row: row.key)
    why = f"among the {what}; the hold-out is a tenth of the prompts, by their hash: give more rows"
    prepared.require_prompts(splits, why)
    return splits


def _require_folds(number: int, prompts: int) -> None:
    """Raise ValueError, before anything is trained, where there are fewer prompts than folds."""
    if number > prompts:
        raise ValueError(f"prepare: {number} folds need {number} prompts or more, and the comparisons have {prompts}")


def _build(
    settings: PreferencePreparation, start: Start, sieves: Mapping[str, Sieve[TokenisedExample]], folder: Path
) -> dict[str, Any]:
    data = {what: _split(sieve.kept, what) for what, sieve in sieves.items()}
    _require_folds(settings.folds, len({row.key for row in sieves["comparisons"].kept}))
    prompts = split_prompts([row for sieve in sieves.values() for row in sieve.kept])
    report: dict[str, Any] = {"score": "single_logit"}
    with prepared.reported(report, "language_model") as measured:
        language_model = _fine_tuned(settings, start, data, measured)
    start.save(language_model, folder / "policy")
    prepared.write_prompts(folder, prompts)
    held = [row["ids"] for row in prompts["held_out"]]
    report["samples"] = continuations(language_model, start.tokenizer, held, seed=settings.seed)
    pairs = data["comparisons"]
    with prepared.reported(report, "reward_model") as measured:
        reward_model = _new_reward_model(settings, start, language_model)
        margins = _learn(settings, reward_model, pairs["train"], pairs["held_out"], measured)
        measured.update(by_confidence(pairs["held_out"], margins))
    start.save(reward_model, folder / "reward")
    report["accuracy"] = _accuracies(settings, start, language_model, sieves["comparisons"].kept, margins)
    report["data"] = {
        **{what: prepared.counts(splits) for what, splits in (*data.items(), ("prompts", prompts))},
        "hold_out": "prompts whose text has a SHA-256 divisible by 10",
        "left_out": {what: prepared.counts(sieve.rejected) for what, sieve in sieves.items()},
        "cut_to_fit": {what: len(sieve.truncated) for what, sieve in sieves.items()},
    }
    return report


def _fine_tuned(
    settings: PreferencePreparation, start: Start, data: Mapping[str, Split], measured: dict[str, Any]
) -> Any:
    """The language model after whole texts (from scratch only) and demonstrations; or a kept base as it is."""
    rows, tests = (
        [Completion(ids=row.best, prompt_tokens=len(row.prompt)) for row in data["demonstrations"][part]]
        for part in SPLITS
    )
    model = start.model
    if settings.supervised is None:  # the base as it is
        measured["perplexity"] = supervised.response_perplexity(model, tests)
        return model
    if start.source is not None:
        assert settings.lora is not None
        model = adapted_language_model(start.source, settings.lora, seed=settings.seed, checkpointing=True).adapters
        require_context(model.get_base_model(), str(settings.base), settings.longest)
    if settings.language is not None and settings.base is None:
        train, test = ([row.best for rows in data.values() for row in rows[part]] for part in SPLITS)
        measured["whole_texts"] = supervised.train_language_model(model, train, test, settings.language)
    measured |= supervised.train_completions(model, rows, tests, settings.supervised)
    return model


def _new_reward_model(settings: PreferencePreparation, start: Start, language_model: Any) -> Any:
    """The trunk of the language model, or of the base under fresh adapters, with a fresh head."""
    if start.source is not None:
        assert settings.lora is not None
        return adapted_reward_model(start.source, settings.lora, seed=settings.seed, checkpointing=True).adapters
    model = supervised.new_classifier(language_model, seed=settings.seed, layers=settings.reward_layers, num_labels=1)
    supervised.freeze_layers(model, settings.frozen_layers)
    return model


def _learn(
    settings: PreferencePreparation,
    model: Any,
    rows: Sequence[TokenisedExample],
    tested: Sequence[TokenisedExample],
    measured: dict[str, Any],
) -> Array:
    """Fit the Bradley-Terry model to ``rows``, in place, and give its margins, score(chosen) - score(rejected), on
    ``tested``."""
    assert settings.reward is not None  # resolved
    pairs, tests = (
        [Pair(**dict(zip(SIDES, row.reward_inputs, strict=True))) for row in some] for some in (rows, tested)
    )
    measured |= supervised.train_preference_model(model, pairs, tests, settings.reward)
    chosen, rejected = (supervised.last_token_scores(model, [getattr(pair, side) for pair in tests]) for side in SIDES)
    return np.asarray(chosen - rejected, dtype=np.float64)


def _accuracies(
    settings: PreferencePreparation,
    start: Start,
    language_model: Any,
    rows: Sequence[TokenisedExample],
    margins: Array,
) -> dict[str, Any]:
    """The reward model beside the baselines on the held-out pairs, of which it has these ``margins``, and on all pairs;
    printed as well."""
    all_pairs = baseline_margins(rows)
    tested = np.array([held_out(row.key) for row in rows])
    held = {REWARD_MODEL: margins, **{name: some[tested] for name, some in all_pairs.items()}}
    what = "all pairs"
    if settings.folds:
        what = f"all pairs, reward model in {settings.folds} folds by prompt"
        crossed = _cross_validated_margins(settings, start, language_model, rows)
        all_pairs = {REWARD_MODEL: crossed, **all_pairs}
    report = {
        "held_out": compared([row for row in rows if held_out(row.key)], held),
        "all_pairs": {**compared(rows, all_pairs), "reward_model_folds": settings.folds},
    }
    for where, found in zip(("held-out pairs", what), report.values(), strict=True):
        print("\n".join(compared_lines(where, found)), flush=True)
    return report


def _cross_validated_margins(
    settings: PreferencePreparation, start: Start, language_model: Any, rows: Sequence[TokenisedExample]
) -> Array:
    """Margins on every pair of a reward model that learned from the other folds, each from the same start.

    That start is the language model of this preparation, which may have learned to write the preferred responses of
    prompts that are not held out.
    """
    margins, fold = np.zeros(len(rows)), np.array(folds([row.key for row in rows], settings.folds))
    for number in range(settings.folds):
        learned, tested = (
            [row for row, here in zip(rows, mask, strict=True) if here] for mask in (fold != number, fold == number)
        )
        measured: dict[str, Any] = {}
        model = _new_reward_model(settings, start, language_model)
        margins[fold == number] = _learn(settings, model, learned, tested, measured)
        print(f"fold {number + 1} of {settings.folds}: accuracy {measured['accuracy']:.3f}", flush=True)
    return margins
