"""LoRA adapters (Hu et al. 2021) on a language model, and the reference that belongs to each kind of start."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file

from models.passes.forward import hiding_nothing
from models.weights.adapter_weights import (
    BESIDE,
    CONFIG,
    MERGE,
    WEIGHTS,
    carries_embeddings,
    peft_on_new_transformers,
    put_on,
    trained_state,
    widen,
)
from models.weights.integrity import some
from models.weights.language_model import vocabulary
from models.weights.lora_settings import ALL_LINEAR, LoraSettings
from models.weights.reference import FROZEN, TRAINED, AdapterOff, FrozenAdapter, require_trained_adapter
from models.weights.safe_files import WAY_OUT
from models.weights.source import ModelSource
from rlhf_core.names import nearest

LEAVES_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Ways of drawing a LoRA that only draw; others take a part of each base weight out of it."""

FOLDERS_ABOVE = 4
"""Folders above an adapter from which the relative name of its base is tried."""


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
    """The task that an adapter was made for, if its settings say so."""
    task: str | None = adapter_config(folder).task_type
    return task


def base_source(adapter: str, source: ModelSource) -> ModelSource:
    """The model under an adapter.

    Raises:
        ValueError: not a LoRA adapter, one that names no base or another adapter as its base, or one that trains
            biases of the base or rewrites its weights.
        FileNotFoundError: its base is neither in one of the places that are tried nor on the hub.
    """
    config = adapter_config(adapter)
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
    if config.layer_replication:
        raise ValueError(
            f"{source.name_or_path} repeats layers of its base (layer_replication={config.layer_replication}), which "
            f"its frozen copy would repeat once more; {MERGE}"
        )
    named = config.base_model_name_or_path
    places = _places(adapter, named, local=Path(source.name_or_path).is_dir())
    found = next((place for place in places if Path(place).is_dir()), named)
    try:
        base = replace(source, name_or_path=found, revision=config.revision)
        is_adapter = adapter_folder(base) is not None
    except OSError as error:
        raise FileNotFoundError(
            f"{source.name_or_path} is an adapter on {named!r}, and that base was not found: there is no folder "
            f"{', '.join(places)}; {error}. If it is a folder that was moved, write where it is into "
            f"base_model_name_or_path of {Path(adapter, CONFIG)}"
        ) from error
    if is_adapter:
        raise ValueError(
            f"{source.name_or_path} is an adapter on {base.name_or_path}, which is an adapter itself; merge that one "
            "into its base (merge_and_unload of PEFT, then save_pretrained) and train on the result"
        )
    return base


def adapter_config(folder: str) -> Any:
    """PEFT's configuration of the adapter in ``folder``."""
    from peft import PeftConfig

    return PeftConfig.from_pretrained(folder)


def _places(adapter: str, named: str, *, local: bool) -> list[str]:
    """Where the base that an adapter names may lie, best first: as it is named, seen from the working directory; where
    it lay beside the adapter when we saved it; and for a relative name in a ``local`` folder, seen from that folder and
    from the folders above, as PEFT notes the name that the base had where the adapter was made."""
    beside, folder = Path(adapter, BESIDE), Path(adapter).resolve()
    places = [Path(named)]
    if beside.is_file():
        places.append(Path(adapter, str(json.loads(beside.read_text(encoding="utf-8")).get("folder"))))
    if local and not Path(named).is_absolute():
        seen_from = (place / named for place in (folder, *folder.parents[:FOLDERS_ABOVE]))
        places += [place for place in seen_from if (place / "config.json").is_file() or not place.is_dir()]
    return list(dict.fromkeys(os.path.normpath(place) for place in places))


def add_fresh_adapter(lm: PreTrainedModel, lora: LoraSettings, *, revision: str | None) -> AdapterOff:
    """Put an adapter on ``lm`` in place: A from torch's generator, B zero, so that policy and reference start equal."""
    adapters = put_fresh(lm, lora, fresh_adapter_config(lm, lora, task="CAUSAL_LM", revision=revision))
    require_trained_adapter(adapters)
    return AdapterOff(lm=lm, adapters=adapters)


def put_fresh(model: PreTrainedModel, lora: LoraSettings, config: Any) -> Any:
    """Put a fresh adapter on ``model``, in place; the PeftModel.

    Raises:
        ValueError: there is nothing in the model that it could adapt, or no module of one of the names.
    """
    from peft import get_peft_model

    _require_modules(model, lora)
    base = str(model.name_or_path)
    try:
        with peft_on_new_transformers():
            adapters = get_peft_model(model, config, adapter_name=TRAINED)
    except ValueError as error:
        raise ValueError(
            f"{base}: LoraSettings(target_modules={lora.target_modules!r}) adapts nothing in {type(model).__name__} "
            f"that can be adapted; {_choices(model)}"
        ) from error
    widen(adapters, TRAINED)
    _name_base(adapters, base)
    return adapters


def _require_modules(model: PreTrainedModel, lora: LoraSettings) -> None:
    """Refuse unknown module names: PEFT silently skips them as long as another name matches."""
    if lora.target_modules is None or isinstance(lora.target_modules, str):
        return
    paths = [name for name, _ in model.named_modules()]
    for target in lora.target_modules:
        if not any(f".{path}".endswith(f".{target}") for path in paths):
            raise ValueError(
                f"{model.name_or_path}: LoraSettings(target_modules={lora.target_modules!r}): {type(model).__name__} "
                f"has no module {target!r}{nearest(target, _linear_layers(model)) or ';'} {_choices(model)}"
            )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    layers = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return sorted({name.split(".")[-1] for name in layers})


def _choices(model: PreTrainedModel) -> str:
    return (
        f"its linear layers are {some(_linear_layers(model)) or 'none'}: name some of them, or give "
        f"target_modules={ALL_LINEAR!r}"
    )


def fresh_adapter_config(
    model: PreTrainedModel, lora: LoraSettings, *, task: Literal["CAUSAL_LM", "SEQ_CLS"], revision: str | None
) -> Any:
    """PEFT's configuration of an adapter on ``model``."""
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    targets = lora.target_modules or DEFAULTS.get(model.config.model_type, ALL_LINEAR)
    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        revision=revision,
    )


def add_trained_adapter(lm: PreTrainedModel, folder: str, base: str) -> FrozenAdapter:
    """Put the adapter in ``folder`` on ``lm`` twice: one copy to train and one, frozen, as the reference.

    Raises:
        ValueError: they do not compute the same, or something is trained that no folder would hold.
    """
    adapters = put_on(lm, folder, trained=True)
    _name_base(adapters, base)
    put_on(lm, folder, name=FROZEN, trained=False, beside=adapters)
    adapters.set_adapter(TRAINED)
    require_trained_adapter(adapters)
    carries = carries_embeddings(lm, folder, adapters.peft_config[TRAINED])
    trained_state(adapters, carries=carries)
    reference = FrozenAdapter(lm=lm, adapters=adapters, carries_embeddings=carries)
    _require_same_start(reference, folder)
    return reference


def add_frozen_adapter(adapters: Any, lm: PreTrainedModel, folder: str, *, name: str) -> FrozenAdapter:
    """Put one more adapter beside the trained one, on the same weights, never merged and never trained."""
    put_on(lm, folder, name=name, trained=False, beside=adapters)
    adapters.set_adapter(TRAINED)
    require_trained_adapter(adapters)
    return FrozenAdapter(lm=lm, adapters=adapters, name=name)


def only_low_rank(config: Any) -> bool:
    """Whether an adapter adds low-rank updates to modules and nothing else, so that several can share one base: what it
    trains besides, PEFT nests in what the others changed, or keeps for one adapter only."""
    return not (config.modules_to_save or config.trainable_token_indices or config.target_parameters)


@torch.no_grad()
def _require_same_start(reference: FrozenAdapter, folder: str) -> None:
    row = hiding_nothing(torch.arange(5, device=reference.lm.device)[None] % vocabulary(reference.lm))
    trained = reference.lm(**row, use_cache=False).logits
    with reference.active():
        frozen = reference.lm(**row, use_cache=False).logits
    if not torch.equal(trained, frozen):
        raise ValueError(
            f"{folder}: two copies of this adapter on one base compute different things, by up to "
            f"{float((trained - frozen).abs().max()):.2g} in a logit, so the frozen one is not a reference; {MERGE}"
        )


def _name_base(adapters: Any, base: str) -> None:
    """Record the base in the adapter in a way that works from any working directory."""
    config = adapters.peft_config[TRAINED]
    config.base_model_name_or_path = os.path.abspath(base) if Path(base).is_dir() else base
