"""Language models from a folder or the hub: safetensors only, complete, and without dropout."""

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from models.passes.fused import make_lean
from models.passes.rotary import read_rows_alone
from models.progress_bars import bars_where_watched
from models.weights.folder_kinds import Wanted, require_kind
from models.weights.four_bit import four_bit_config, keep_unpacked, stored_quantisation
from models.weights.integrity import require_intact
from models.weights.safe_files import read_settings, require_safe_files
from models.weights.source import DTYPES, ModelSource
from rlhf_core.files.file_errors import reading

RANDOMNESS = re.compile("drop|jitter")


def load_language_model(source: ModelSource) -> PreTrainedModel:
    """The causal language model, with every dropout at zero, in eval mode.

    Raises:
        ValueError: files that ``require_safe_files`` refuses or that cannot be read, weights missing
            from them (transformers would draw them at random), or what ``require_intact`` refuses.
    """
    lm = read_language_model(source)
    remove_randomness(lm)
    make_lean(lm)
    keep_unpacked(lm)
    read_rows_alone(lm)
    lm.eval()  # type: ignore[no-untyped-call]
    return lm


def read_language_model(source: ModelSource) -> PreTrainedModel:
    """The causal language model as it was saved, with its dropout."""
    lm, loading = read_model(AutoModelForCausalLM, source, DTYPES[source.dtype], wanted="language model")
    require_complete(source.name_or_path, lm, loading)
    return lm


def read_model(
    factory: Any,
    source: ModelSource,
    dtype: torch.dtype,
    *,
    wanted: Wanted,
    products: torch.dtype | None = None,
    whole: Collection[str] = (),
    **options: object,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Read the weights of a whole model, the only function that does; and transformers' loading report, for the caller
    to check. In 4-bit, ``products`` is what matrix products are computed in (None: ``dtype``), and ``whole`` names
    modules that are not quantised.

    Raises:
        ValueError: another kind of model than is ``wanted``, files that ``require_safe_files``
            refuses or that cannot be read, or weights quantised in a way that nothing here computes with.
    """
    name = source.name_or_path
    config = read_settings(name, "config.json", source.revision)
    require_kind(name, wanted, config)
    require_safe_files(name, source.revision)
    stored = stored_quantisation(name, config)
    if stored is not None:
        with reading(name):
            own: Any = AutoConfig.from_pretrained(name, **source.code, **options)
        own.quantization_config = {**stored, "bnb_4bit_compute_dtype": str(products or dtype).removeprefix("torch.")}
        options = {"config": own}
    elif source.four_bit:
        quantisation = four_bit_config(products or dtype)
        quantisation.llm_int8_skip_modules = list(whole) or None
        options |= {"quantization_config": quantisation}
    quantised = source.four_bit or stored is not None
    if quantised:
        options |= {"device_map": {"": source.device}}
    with reading(name), bars_where_watched():
        model, loading = factory.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.code,
            **options,
        )
    if not quantised:
        model.to(source.device)
    elif stored is not None:
        for weight in model.parameters():  # those that are not packed keep the dtype they were stored in
            weight.data = weight.data.to(dtype) if weight.is_floating_point() else weight.data
    return model, loading


def require_complete(name: str, lm: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Raise ValueError where weights of a language model are missing, or what else ``require_intact`` refuses."""
    if loading["missing_keys"]:
        raise ValueError(
            f"{name} is not a complete {type(lm).__name__}: {sorted(loading['missing_keys'])[:5]} are not in its files "
            "and would be random; fine-tune and save it as a causal language model first"
        )
    require_intact(name, lm, loading)


def remove_randomness(model: nn.Module) -> None:
    """Set every dropout (modules, functional ones read from attributes or the config, layer drop, router jitter) to 0,
    so that train and eval mode compute the same."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for owner in (module, getattr(module, "config", None)):
            for name, value in vars(owner).items() if owner is not None else ():
                if RANDOMNESS.search(name) and isinstance(value, float | int) and not isinstance(value, bool):
                    setattr(owner, name, 0.0)


def vocabulary(lm: PreTrainedModel) -> int:
    """Ids the model has an embedding for; may exceed the tokenizer's where the embedding is padded."""
    embedding: Any = lm.get_input_embeddings()
    return int(embedding.weight.shape[0])


def frozen_copy(lm: PreTrainedModel) -> PreTrainedModel:
    """An independent copy in eval mode that no optimizer reaches."""
    frozen = copy.deepcopy(lm).requires_grad_(False)
    frozen.eval()  # type: ignore[no-untyped-call]
    return frozen
