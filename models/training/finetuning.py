"""Fine-tuning a base model that is too large to train whole: low-rank adapters on (4-bit) weights that stay frozen.

What comes out are adapter folders that :func:`models.load_policy` and :func:`models.load_reward_model` read; nothing
is ever merged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from models.passes.checkpointing import recompute_activations
from models.passes.rotary import read_rows_alone
from models.rewards.classifier_head import HEAD_NAMES
from models.weights.adapter_weights import save_adapter
from models.weights.adapters import LoraSettings, add_fresh_adapter, fresh_adapter_config, put_fresh
from models.weights.four_bit import keep_unpacked
from models.weights.integrity import require_intact
from models.weights.language_model import (
    DTYPES,
    ModelSource,
    load_language_model,
    load_tokenizer,
    read_model,
    remove_randomness,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapted:
    """A model with a fresh adapter, ready for :mod:`models.training.supervised`."""

    adapters: Any
    """The PeftModel, which is what is trained."""
    tokenizer: PreTrainedTokenizerBase

    def save(self, folder: str) -> None:
        """Write the adapter (safetensors; with its head, for a reward model) and the tokenizer."""
        save_adapter(self.adapters, folder)
        self.tokenizer.save_pretrained(folder)


def adapted_language_model(source: ModelSource, lora: LoraSettings, *, seed: int, checkpointing: bool) -> Adapted:
    """The causal language model at ``source`` with a fresh adapter; raises as :func:`models.load_policy` does."""
    with _seeded(seed):
        lm = load_language_model(source)
        adapters = add_fresh_adapter(lm, lora, revision=source.revision).adapters
    if checkpointing:
        recompute_activations(lm)
    return Adapted(adapters=adapters, tokenizer=load_tokenizer([source]))


def adapted_reward_model(source: ModelSource, lora: LoraSettings, *, seed: int, checkpointing: bool) -> Adapted:
    """The trunk at ``source`` with a fresh adapter and a fresh head of one logit, which is trained whole."""
    with _seeded(seed):
        model = load_trunk(source, labels=1)
        config = fresh_adapter_config(model, lora, task="SEQ_CLS", revision=source.revision)
        config.modules_to_save = ["score"]
        adapters = put_fresh(model, lora, config)
    if checkpointing:
        recompute_activations(model)
    return Adapted(adapters=adapters, tokenizer=load_tokenizer([source]))


def load_trunk(source: ModelSource, *, labels: int) -> PreTrainedModel:
    """A sequence classifier whose trunk comes from ``source``, without dropout, and whose head is random.

    Raises:
        ValueError: files that ``require_safe_files`` refuses or that cannot be read, weights of the
            trunk that are missing or that ``require_intact`` refuses, or an architecture without
            ``score`` head on the last token.
    """
    factory, dtype = AutoModelForSequenceClassification, DTYPES[source.dtype]
    model, loading = read_model(factory, source, dtype, wanted="trunk", whole=HEAD_NAMES, num_labels=labels)
    missing = [key for key in loading["missing_keys"] if key.split(".")[0] not in HEAD_NAMES]
    if missing or not isinstance(getattr(model, "score", None), nn.Module):
        raise ValueError(
            f"{source.name_or_path}: no trunk of a reward model that reads its last token "
            f"({type(model).__name__}; weights missing from the files: {missing[:3]})"
        )
    trunk_only = {key for key in loading["mismatched_keys"] if key[0].split(".")[0] not in HEAD_NAMES}
    require_intact(source.name_or_path, model, {**loading, "mismatched_keys": trunk_only}, heads=())
    model.config.pad_token_id = None  # its own pooling, which looks for padding, is never used
    remove_randomness(model)
    keep_unpacked(model)
    read_rows_alone(model)
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
