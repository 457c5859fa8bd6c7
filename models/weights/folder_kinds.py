"""Name the kind of a model folder, by its settings and file names, if it is not the kind that is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

Wanted = Literal["language model", "classifier", "token classifier", "trunk", "critic"]

POLICY, REWARD = "load_policy takes it", "load_reward_model takes it"
STEPS = "load_process_reward_model takes it, as a scorer of steps"
NOTHING = "no function here loads it"
TASKS = {
    "ForSequenceClassification": ("a sequence classifier", REWARD),
    "ForTokenClassification": ("a token classifier, which labels every token", STEPS),
    "ForProcessRewardModel": (
        "a process reward model with a class of its own",
        f"{NOTHING}; load_process_reward_model takes a ...ForTokenClassification",
    ),
    "ForQuestionAnswering": ("a question answering model, which marks a span", NOTHING),
    "ForMultipleChoice": ("a multiple choice model", NOTHING),
    "ForNextSentencePrediction": ("a next sentence predictor", NOTHING),
    "ForMaskedLM": ("a masked language model, an encoder that sees the whole text", NOTHING),
    "ForPreTraining": ("a model before it was fine-tuned", NOTHING),
    "ForImageClassification": ("an image classifier", NOTHING),
    "ForCausalLM": ("a causal language model", POLICY),
    "LMHeadModel": ("a causal language model", POLICY),
    "ForConditionalGeneration": ("a model that generates from another input", NOTHING),
}
"""What the end of an architecture's name says, and which function takes it."""
FITTING: Mapping[Wanted, tuple[str, ...]] = {
    "language model": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "classifier": ("ForSequenceClassification",),
    "token classifier": ("ForTokenClassification",),
    "trunk": ("ForCausalLM", "LMHeadModel", "ForSequenceClassification"),
    "critic": ("ForCausalLM", "LMHeadModel", "ForSequenceClassification"),
}
NAMES: Mapping[Wanted, str] = {
    "language model": "a causal language model",
    "classifier": "a sequence classifier",
    "token classifier": "a token classifier",
    "trunk": "a trunk for a sequence classifier",
    "critic": "a trunk for a critic",
}
MADE: Mapping[Wanted, Mapping[str, Any]] = {
    "language model": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token classifier": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "critic": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "trunk": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
ADAPTER_TASKS = {
    "SEQ_CLS": ("the adapter of a sequence classifier", REWARD),
    "TOKEN_CLS": ("the adapter of a token classifier", f"once merged into its base, {STEPS}"),
    "QUESTION_ANS": ("the adapter of a question answering model", NOTHING),
    "FEATURE_EXTRACTION": ("the adapter of a model for embeddings", NOTHING),
    "SEQ_2_SEQ_LM": ("the adapter of a sequence-to-sequence model", NOTHING),
    "CAUSAL_LM": ("the adapter of a causal language model", POLICY),
}
ADAPTERS_OF: Mapping[Wanted, str] = {
    "language model": "CAUSAL_LM",
    "classifier": "SEQ_CLS",
    "token classifier": "TOKEN_CLS",
}
EMBEDDINGS = "a sentence-transformers model, which makes embeddings"
FILES_OF_OTHERS = {
    "model_index.json": "a diffusers pipeline",
    "modules.json": EMBEDDINGS,
    "config_sentence_transformers.json": EMBEDDINGS,
    "dataset_info.json": "a data set",
    "dataset_dict.json": "a data set",
}
ENDINGS_OF_OTHERS = {
    ".gguf": "a GGUF model, whose weights are no safetensors (get the model that it was made from)",
    **dict.fromkeys((".parquet", ".arrow", ".jsonl", ".csv", ".gz"), "a data set"),
}


def require_kind(name: str, wanted: Wanted, config: Mapping[str, Any]) -> None:
    """Refuse a whole model that is made for something else than ``wanted``: transformers would read its trunk, and the
    head of another task where it has the same name. ``config`` is its config.json, empty if there is none.

    Raises:
        ValueError: saying what it is, and which function takes it.
    """
    if other := _other_kind(Path(name), has_config=bool(config)):
        raise ValueError(f"{name} is {other}, not {NAMES[wanted]}")
    architectures = config.get("architectures")
    named = [str(one) for one in architectures] if isinstance(architectures, list) else []
    tasks = sorted({ending for one in named for ending in TASKS if one.endswith(ending)})
    if tasks and not set(tasks) & set(FITTING[wanted]):
        what, way_out = TASKS[tasks[0]]
        raise ValueError(f"{name} is {what} ({', '.join(named)}), not {NAMES[wanted]}; {way_out}")
    kind = config.get("model_type")
    if isinstance(kind, str) and "auto_map" not in config and kind not in MADE[wanted]:
        raise ValueError(f"{name} is of type {kind!r}, of which transformers can make no {NAMES[wanted][2:]}")


def require_adapter_kind(name: str, wanted: Wanted, task: str | None) -> None:
    """Refuse an adapter whose settings name another task; raises like :func:`require_kind`."""
    if task in ADAPTER_TASKS and task != ADAPTERS_OF[wanted]:
        what, way_out = ADAPTER_TASKS[task]
        raise ValueError(f"{name} is {what}, not of {NAMES[wanted]}; {way_out}")


def _other_kind(folder: Path, *, has_config: bool) -> str:
    """What a folder is, if it is not a transformers model; empty if that cannot be told, or if it is not a folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    told = [FILES_OF_OTHERS[file.name] for file in files if file.name in FILES_OF_OTHERS]
    if told:
        return told[0]
    if has_config or not files:
        return ""
    if (folder / "adapter_config.json").is_file():
        return "an adapter (name the model under it, where an adapter does not do)"
    if inner := [str(place) for place in _models_in(files)]:
        return f"a folder around models (did you mean {' or '.join(map(repr, inner[:3]))}?)"
    told = [ENDINGS_OF_OTHERS[file.suffix] for file in files if file.suffix in ENDINGS_OF_OTHERS]
    if list(folder.glob("*.safetensors")):
        told.append("a folder of weights without a config.json (get the whole folder)")
    elif list(folder.glob("tokenizer*")):
        told.append("a tokenizer without a model")
    return told[0] if told else ""


def _models_in(files: list[Path]) -> list[Path]:
    """Models one level down, and two: a checkpoint's policy lies in a run's checkpoint; the newest first."""
    newest = sorted(files, key=lambda file: (len(file.name), file.name), reverse=True)
    places = [place for file in newest for place in (file, file / "policy")]
    return [place for place in places if (place / "config.json").is_file() or (place / "adapter_config.json").is_file()]
