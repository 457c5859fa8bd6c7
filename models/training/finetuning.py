"""Fine-tune a base model that is too large to train in full: low-rank adapters on frozen (4-bit) weights.

The results are adapter folders that :func:`models.load_policy` and :func:`models.load_reward_model` read; nothing
is ever merged.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from models.passes.gradient_checkpointing import recompute_activations
from models.rewards.trunk import load_trunk
from models.weights.adapter_weights import save_adapter
from models.weights.adapters import add_fresh_adapter, fresh_adapter_config, put_fresh
from models.weights.language_model import load_language_model
from models.weights.lora_settings import LoraSettings
from models.weights.seeding import seeded
from models.weights.source import ModelSource
from models.weights.tokenizer import load_tokenizer


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
    """The causal language model at ``source`` with a fresh adapter; raises like :func:`models.load_policy`."""
    with seeded(seed, source.device):
        lm = load_language_model(source)
        adapters = add_fresh_adapter(lm, lora, revision=source.revision).adapters
    if checkpointing:
        recompute_activations(lm)
    return Adapted(adapters=adapters, tokenizer=load_tokenizer([source]))


def adapted_reward_model(source: ModelSource, lora: LoraSettings, *, seed: int, checkpointing: bool) -> Adapted:
    """The trunk at ``source`` with a fresh adapter and a fresh head of one logit, which is trained whole."""
    with seeded(seed, source.device):
        model = load_trunk(source, labels=1)
        config = fresh_adapter_config(model, lora, task="SEQ_CLS", revision=source.revision)
        config.modules_to_save = ["score"]
        adapters = put_fresh(model, lora, config)
    if checkpointing:
        recompute_activations(model)
    return Adapted(adapters=adapters, tokenizer=load_tokenizer([source]))
