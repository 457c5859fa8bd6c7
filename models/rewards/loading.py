"""``load_reward_model``: a classifier saved whole, or a LoRA adapter with a head, from a folder or a hub name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.passes.fused import make_lean
from models.rewards.classifier_head import HEAD_NAMES, require_pooling
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.score_kinds import Label, find_score
from models.rewards.score_names import Pooling, ScoreKind
from models.rewards.trunk import load_trunk
from models.weights.adapter_weights import WEIGHTS, fit_vocabulary, put_on
from models.weights.adapters import adapter_folder, adapter_task, base_source
from models.weights.dtype_names import DType
from models.weights.folder_kinds import require_adapter_kind, require_kind
from models.weights.four_bit import keep_unpacked
from models.weights.integrity import require_intact, some
from models.weights.language_model import read_model
from models.weights.safe_files import read_settings
from models.weights.source import ModelSource
from models.weights.tokenizer import find_tokenizer, load_tokenizer
from rlhf_core.files.file_errors import reading
from rlhf_core.names import nearest

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
DESCRIPTION = ("num_labels", "id2label", "problem_type")
"""Of a classifier's config.json, what its score depends on."""


def load_reward_model(
    name_or_path: str,
    *,
    score: ScoreKind | None = None,
    label: Label | None = None,
    pooling: Pooling = "last",
    four_bit: bool = False,
    dtype: Precision = "float32",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    micro_batch_tokens: int = 4096,
) -> ClassifierReward:
    """A reward model from a sequence classifier and its tokenizer; ``name_or_path`` is a folder or a hub name, at the
    ``revision`` given. A LoRA adapter that brings its own ``score`` head is loaded onto its base model.

    ``device`` is where the model lies. ``micro_batch_tokens``: prompt and response tokens of one pass, padding
    included. ``trust_remote_code`` runs code from the hub; it needs a commit hash as ``revision``.

    ``four_bit``: linear layers of the trunk in NF4 with bfloat16 products (Dettmers et al. 2023); everything else,
    the head included, in ``dtype``.

    Which number is the reward is inferred where the folder leaves no choice: the one logit of a head of one label, or
    label 1 minus label 0 where these are named negative and positive. Otherwise ``score`` or ``label`` say it, as in
    :class:`ClassifierReward`: ``label="positive"``, a name or an index of ``id2label``, is that label's log-odds
    against all the others.

    ``pooling`` is the token that a decoder's score is read at: "last" the last token, EOS included; "hf" the token that
    ``AutoModelForSequenceClassification`` reads, the last that is not the pad token. Choose "hf" for a model that was
    trained by transformers with pad and EOS as one token: it never read the EOS.

    Raises:
        ValueError: several numbers could be the reward and none is named, or the labels do not fit the one that is;
            files that ``require_safe_files`` refuses or that cannot be read; weights missing from the folder (a model
            without a head would score at random) or left over for trunk or head; ``trust_remote_code`` without a
            commit hash as ``revision``; ``pooling="hf"`` of an encoder, or without a pad token in config.json.
        FileNotFoundError: no such folder, and no name that a hub could know.
    """
    given = ModelSource(
        name_or_path=name_or_path, revision=revision, trust_remote_code=trust_remote_code, device=device
    )
    require_precision(dtype)
    require_pooling(pooling)
    with reading(str(name_or_path)):
        adapter = adapter_folder(given)
        _require_score(given, adapter, score, label)
        if adapter is not None:
            source = replace(given, dtype=cast(DType, dtype), four_bit=four_bit)
            model, tokenizer = _with_adapter(adapter, source)
        else:
            model = _whole(replace(given, four_bit=four_bit), getattr(torch, dtype))
            tokenizer = find_tokenizer([given])
        make_lean(model)
        return ClassifierReward(
            model, tokenizer, score=score, label=label, pooling=pooling, micro_batch_tokens=micro_batch_tokens
        )


def require_precision(dtype: str) -> None:
    """Raise ValueError for an unknown one."""
    if dtype not in list(PRECISIONS):
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}{nearest(dtype, PRECISIONS)}")


def _require_score(source: ModelSource, adapter: str | None, score: ScoreKind | None, label: Label | None) -> None:
    """Raise as :func:`find_score` does, by what the files say of the labels, before any weights are read."""
    name = source.name_or_path
    if adapter is not None:
        require_adapter_kind(name, "classifier", adapter_task(adapter))
        described: dict[str, Any] = {"num_labels": head_labels(adapter, name)}
    else:
        config = read_settings(name, "config.json", source.revision)
        require_kind(name, "classifier", config)
        if not config:
            return  # what comes next says what is missing
        described = {key: config[key] for key in DESCRIPTION if key in config}
    find_score(str(name), PreTrainedConfig.from_dict(described), score, label)


def _whole(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """A classifier that was saved with its head."""
    factory, products = AutoModelForSequenceClassification, torch.bfloat16
    model, info = read_model(factory, source, dtype, wanted="classifier", whole=HEAD_NAMES, products=products)
    require_whole_head(source.name_or_path, model, info, "sequence classifier")
    keep_unpacked(model)
    return model


def require_whole_head(name: str, model: PreTrainedModel, info: Mapping[str, Any], kind: str) -> None:
    """Refuse a classifier that is not the one that was saved, or was saved without its head; ``info`` is transformers'
    account of it.

    Raises:
        ValueError: what ``require_intact`` refuses, or weights that are missing.
    """
    require_intact(name, model, info, heads=HEAD_NAMES)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name}: {type(model).__name__} has no weights for {some(missing)} there and would score "
            f"with random ones. Point to a folder saved from a trained {kind}"
        )


def _with_adapter(adapter: str, source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trunk under a LoRA adapter that brings its own head (see :mod:`models.training.finetuning`)."""
    labels = head_labels(adapter, source.name_or_path)
    base = base_source(adapter, source)
    model = load_trunk(base, labels=labels)
    tokenizer = load_tokenizer([source, base])
    fit_vocabulary(model, adapter, tokenizer)
    put_on(model, adapter, trained=False)
    return model, tokenizer


def head_labels(adapter: str, name: str) -> int:
    """Logits of the ``score`` head that an adapter's folder brings; ``name`` is for the message.

    Raises:
        ValueError: it brings none.
    """
    with safe_open(Path(adapter, WEIGHTS), framework="pt") as weights:
        heads = [key for key in weights.keys() if key.endswith("score.weight")]  # noqa: SIM118
        if not heads:
            raise ValueError(
                f"{name} is an adapter without a `score` head and would score with a random one; train "
                "it with modules_to_save=['score'], as benchmarks.prepare does"
            )
        labels: int = weights.get_slice(heads[0]).get_shape()[0]
    return labels
