"""LoRA adapters (Hu et al. 2021) on a language model, and the reference each way of starting implies."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file

from models.adapter_files import WEIGHTS, require_whole_adapter
from models.files import WAY_OUT
from models.loading import ModelSource, remove_randomness
from models.reference import FROZEN, TRAINED, AdapterOff, FrozenAdapter, require_trained_adapter

CONFIG = "adapter_config.json"
LEAVES_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Ways of drawing a LoRA that only draw; others take a part of each base weight out of it."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """A fresh low-rank adapter; the update of a weight is alpha / rank · B A. Dropout is always 0: it would make
    training evaluate another policy than the one that was sampled.

    Raises:
        ValueError: a rank or alpha that is not a positive whole number, or target modules that are no names.
    """

    rank: int = 32
    """Rank of A and B (paper: 32)."""
    alpha: int = 32
    """Scale (paper: 32)."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt; None is PEFT's default for the architecture (the paper's choice)."""

    def __post_init__(self) -> None:
        if not all(type(number) is int and number >= 1 for number in (self.rank, self.alpha)):
            raise ValueError(
                f"LoraSettings: rank and alpha must be positive whole numbers, got {self.rank!r} and {self.alpha!r}"
            )
        modules = self.target_modules
        if modules is not None and not (
            isinstance(modules, tuple | list) and modules and all(isinstance(name, str) for name in modules)
        ):
            raise ValueError(f"LoraSettings: target_modules must be names of modules, or None, got {modules!r}")


def adapter_folder(source: ModelSource) -> str | None:
    """Local folder of the adapter that ``source`` is, or None if it is a whole model.

    Raises:
        ValueError: an adapter without safetensors weights.
    """
    settings = {"revision": source.revision, "_raise_exceptions_for_missing_entries": False}
    if cached_file(source.name_or_path, CONFIG, **settings) is None:
        return None
    weights = cached_file(source.name_or_path, WEIGHTS, **settings)
    if weights is None:
        raise ValueError(f"{source.name_or_path} is an adapter without {WEIGHTS}; {WAY_OUT}")
    return str(Path(weights).parent)


def adapter_task(folder: str) -> str | None:
    """What an adapter was made for, where its settings say so."""
    from peft import PeftConfig

    task: str | None = PeftConfig.from_pretrained(folder).task_type
    return task


def base_source(adapter: str, source: ModelSource) -> ModelSource:
    """The model under an adapter.

    Raises:
        ValueError: not a LoRA adapter, one that names no base or another adapter as its base, or one that trains
            biases of the base or rewrites its weights.
    """
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(adapter)
    if config.peft_type != "LORA" or config.base_model_name_or_path is None:
        raise ValueError(
            f"{source.name_or_path}: only LoRA adapters that name their base model are supported, got type "
            f"{config.peft_type} on base {config.base_model_name_or_path}"
        )
    if config.bias != "none":
        raise ValueError(
            f"{source.name_or_path} trains biases of its base (bias={config.bias!r}), which its frozen "
            "copy would share; train it with bias='none'"
        )
    if config.init_lora_weights not in LEAVES_THE_BASE:
        raise ValueError(
            f"{source.name_or_path} rewrites the weights of its base when loaded (init_lora_weights="
            f"{config.init_lora_weights!r}), a second time for its frozen copy; save it as a plain LoRA adapter, with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) of PEFT"
        )
    base = replace(source, name_or_path=config.base_model_name_or_path, revision=config.revision)
    if adapter_folder(base) is not None:
        raise ValueError(
            f"{source.name_or_path} is an adapter on {base.name_or_path}, which is an adapter itself; merge that one "
            "into its base (merge_and_unload of PEFT, then save_pretrained) and train on the result"
        )
    return base


def add_fresh_adapter(lm: PreTrainedModel, lora: LoraSettings, *, revision: str | None) -> AdapterOff:
    """Put an adapter on ``lm`` in place: A from torch's generator, B zero, so that policy and reference start equal."""
    from peft import get_peft_model

    config = fresh_adapter_config(lm, lora, task="CAUSAL_LM", revision=revision)
    with peft_on_new_transformers():
        adapters = get_peft_model(lm, config, adapter_name=TRAINED)
    require_trained_adapter(adapters)
    return AdapterOff(lm=lm, adapters=adapters)


def fresh_adapter_config(
    model: PreTrainedModel, lora: LoraSettings, *, task: Literal["CAUSAL_LM", "SEQ_CLS"], revision: str | None
) -> Any:
    """PEFT's configuration of an adapter on ``model``."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.target_modules) if lora.target_modules else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        revision=revision,
    )


def add_trained_adapter(lm: PreTrainedModel, folder: str) -> FrozenAdapter:
    """Put the adapter in ``folder`` on ``lm`` twice: one copy to train and one, frozen, as the reference."""
    from peft import PeftModel

    device = str(lm.device)
    with peft_on_new_transformers():
        adapters = PeftModel.from_pretrained(lm, folder, adapter_name=TRAINED, is_trainable=True, torch_device=device)
        adapters.load_adapter(folder, adapter_name=FROZEN, is_trainable=False, torch_device=device)
    adapters.set_adapter(TRAINED)
    for name in (TRAINED, FROZEN):
        require_whole_adapter(folder, adapters, name=name)
    remove_randomness(adapters)
    require_trained_adapter(adapters)
    return FrozenAdapter(lm=lm, adapters=adapters)


def add_frozen_adapter(adapters: Any, lm: PreTrainedModel, folder: str, *, name: str) -> FrozenAdapter:
    """Put one more adapter beside the trained one, on the same weights, never merged and never trained."""
    with peft_on_new_transformers():
        adapters.load_adapter(folder, adapter_name=name, is_trainable=False, torch_device=str(lm.device))
    adapters.set_adapter(TRAINED)
    require_whole_adapter(folder, adapters, name=name)
    remove_randomness(adapters)
    require_trained_adapter(adapters)
    return FrozenAdapter(lm=lm, adapters=adapters, name=name)


def put_adapter(lm: PreTrainedModel, folder: str) -> None:
    """Put the adapter in ``folder`` on ``lm``, in place, on for good."""
    from peft import PeftModel

    with peft_on_new_transformers():
        adapters = PeftModel.from_pretrained(lm, folder, torch_device=str(lm.device))
    require_whole_adapter(folder, adapters, name=TRAINED)
    remove_randomness(adapters)


def save_adapter(adapters: Any, folder: str) -> None:
    """Write the trained adapter where PeftModel.from_pretrained looks for it."""
    adapters.save_pretrained(folder, selected_adapters=[TRAINED], save_embedding_layers=False)


@contextmanager
def peft_on_new_transformers() -> Iterator[None]:
    """PEFT 0.21 reads an attribute that transformers 5.23 renamed and warns about; users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
