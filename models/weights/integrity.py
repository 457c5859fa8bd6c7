"""Faults of a model folder: checks that transformers skips, or reports without naming the folder."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from rlhf_core.files.tensor_files import require_own_file

SETTINGS = (
    *("config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json"),
    *("base_model.json", "tokenizer.json", "tokenizer_config.json"),
)
# Causal masks that older versions of transformers saved among the weights; models without a list of them report them.
SAVED_MASKS = re.compile(r"att(entio)?n\.(masked_)?bias$")
LM_HEADS = ("lm_head", "embed_out")


def check_folder(folder: Path) -> None:
    """Refuse a folder with files that are not its own, or a settings file that is not a JSON object: transformers
    follows the first, and ignores some of the second without a message.

    Raises:
        ValueError: naming the file.
    """
    for file in (*folder.glob("*"), *folder.glob("additional_chat_templates/*")):
        if not file.is_dir():
            require_own_file(file)
    for file in (folder / name for name in SETTINGS):
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file} must hold a JSON object, got a {type(found).__name__}")


def require_intact(
    name: str, model: PreTrainedModel, loading: Mapping[str, Any], *, heads: Collection[str] = LM_HEADS
) -> None:
    """Refuse a model that is not the one that was saved; ``loading`` is transformers' account of it, made with
    ``ignore_mismatched_sizes``. Weights that are missing are for the caller to judge.

    Raises:
        ValueError: naming weights of another shape than the config asks for, weights of the trunk or of ``heads`` that
            the model has no place for, whole numbers in place of weights, or weights that are not
            finite.
    """
    shapes = [f"{key} {tuple(found)}, not {tuple(due)}" for key, found, due in sorted(loading["mismatched_keys"])]
    if shapes:
        raise ValueError(f"{name}: weights and config.json do not belong together; the files hold {some(shapes)}")
    trunk = {model.base_model_prefix, *dict(model.base_model.named_children()), *heads}
    dropped = sorted(
        key for key in loading["unexpected_keys"] if key.split(".")[0] in trunk and not SAVED_MASKS.search(key)
    )
    if dropped:
        raise ValueError(
            f"{name}: the folder holds {some(dropped)}, for which {type(model).__name__} has no place; it would not "
            "be the model that was saved"
        )
    _require_fractions(name, model)
    require_finite_weights(name, model)


def _require_fractions(name: str, model: PreTrainedModel) -> None:
    """Refuse whole numbers stored for weights that are none: transformers would read them as if they were.

    A quantised model has its own use for them; of a model on the hub, the files are not looked up again.
    """
    if getattr(model, "is_quantized", False):
        return
    expected = {key for key, weight in model.named_parameters() if weight.is_floating_point()}
    for file in sorted(Path(name).glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                kind = stored.get_slice(key).get_dtype()
                if "F" not in kind and not expected.isdisjoint((key, f"{model.base_model_prefix}.{key}")):
                    raise ValueError(f"{file}: {key} is stored as {kind}, where a weight is expected")


def require_finite_weights(name: str, model: nn.Module) -> None:
    """Raise ValueError naming the first parameter, buffer or quantisation constant that holds NaN or infinity."""
    for key, weight in model.state_dict().items():
        # the smallest and the largest tell: a mask as large as the weights might not fit
        fractions = weight.is_floating_point() and weight.numel()
        if fractions and not bool(torch.stack(torch.aminmax(weight)).isfinite().all()):
            raise ValueError(f"{name}: {key} holds values that are not finite; the model is damaged or diverged")


def some(names: list[str]) -> str:
    """The first few names, and the number of further ones."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
