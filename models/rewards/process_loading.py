"""``load_process_reward_model``: a token classifier from a folder or a hub name, as a scorer of steps."""

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel

from models.passes.fused import make_lean
from models.rewards.classifier_head import HEAD_NAMES
from models.rewards.loading import DESCRIPTION, Precision, require_precision, require_whole_head
from models.rewards.process_reward import ProcessReward, StepScore, marker_ids, require_step_settings, step_score
from models.rewards.score_kinds import Label
from models.rewards.steps import Aggregate
from models.weights.adapters import adapter_folder, adapter_task
from models.weights.folder_kinds import require_adapter_kind, require_kind
from models.weights.four_bit import keep_unpacked
from models.weights.language_model import read_model
from models.weights.safe_files import read_settings
from models.weights.source import ModelSource
from models.weights.tokenizer import find_tokenizer
from rlhf_core.files.file_errors import reading


def load_process_reward_model(
    name_or_path: str,
    *,
    separator: str = "\n",
    marker: str | None = None,
    score: StepScore = "probability",
    label: Label | None = None,
    aggregate: Aggregate = "sum",
    four_bit: bool = False,
    dtype: Precision = "float32",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    micro_batch_tokens: int = 4096,
) -> ProcessReward:
    """A process reward model from a token classifier (an architecture ``...ForTokenClassification``, as TRL's
    PRMTrainer saves) and its tokenizer, which must be the policy's; ``name_or_path`` is a folder or a hub name, at the
    ``revision`` given.

    ``separator``, ``marker``, ``score``, ``label`` and ``aggregate`` say what a step is, where it is scored, and what
    is made of the scores: see :class:`ProcessReward`. Nothing in a folder says what it was trained with; the defaults
    are PRMTrainer's. ``four_bit``, ``dtype``, ``device``, ``trust_remote_code`` and ``micro_batch_tokens`` are as in
    :func:`models.load_reward_model`.

    Raises:
        ValueError: a folder of another kind, or an adapter; settings that do not fit the model, such as a marker
            without a token; weights missing from the folder or left over; files that cannot be read.
        FileNotFoundError: no such folder, and no name that a hub could know.
    """
    given = ModelSource(
        name_or_path=name_or_path, revision=revision, trust_remote_code=trust_remote_code, device=device
    )
    require_precision(dtype)
    require_step_settings(separator, score, aggregate, micro_batch_tokens)
    with reading(str(name_or_path)):
        _require_label(given, label)
        tokenizer = find_tokenizer([given])
        marker_ids(tokenizer, separator if marker is None else marker, str(name_or_path))
        model = _token_classifier(replace(given, four_bit=four_bit), getattr(torch, dtype))
        make_lean(model)
        return ProcessReward(
            model,
            tokenizer,
            separator=separator,
            marker=marker,
            score=score,
            label=label,
            aggregate=aggregate,
            micro_batch_tokens=micro_batch_tokens,
        )


def _require_label(source: ModelSource, label: Label | None) -> None:
    """Refuse another kind of folder, and raise as :func:`step_score` does, before any weights are read."""
    name = str(source.name_or_path)
    if (adapter := adapter_folder(source)) is not None:
        require_adapter_kind(name, "token classifier", adapter_task(adapter))
        raise ValueError(
            f"{name} is an adapter, and a process reward model is loaded whole: merge it into its base model "
            "(merge_and_unload of peft), and save that"
        )
    config = read_settings(name, "config.json", source.revision)
    require_kind(name, "token classifier", config)
    if config:
        described: dict[str, Any] = {key: config[key] for key in DESCRIPTION if key in config}
        step_score(name, PreTrainedConfig.from_dict(described), label)


def _token_classifier(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    factory, products = AutoModelForTokenClassification, torch.bfloat16
    model, info = read_model(factory, source, dtype, wanted="token classifier", whole=HEAD_NAMES, products=products)
    require_whole_head(source.name_or_path, model, info, "token classifier")
    keep_unpacked(model)
    return model
