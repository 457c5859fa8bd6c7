"""Load an adapter's folder onto a model and save it again, so that no weight is lost, rounded or left random."""

import copy
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from models.passes.fused import make_lean
from models.weights.integrity import require_finite_weights, some
from models.weights.language_model import remove_randomness, vocabulary
from models.weights.reference import TRAINED
from rlhf_core.files.tensor_files import read_tensors, require_finite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BESIDE = "base_model.json"
"""Where the base lies as seen from the adapter: found again when both are moved together."""
PREFIX = "base_model.model."
COPIES = ".modules_to_save."
MERGE = (
    "merge the adapter into its base (merge_and_unload of PEFT, then save_pretrained, with the tokenizer beside it; if "
    "it trains embeddings that are tied to the head, first load the base with tie_word_embeddings=False and give its "
    "head a copy of them) and train on the result"
)


def put_on(model: PreTrainedModel, folder: str, *, trained: bool, name: str = TRAINED, beside: Any = None) -> Any:
    """Put the adapter in ``folder`` on ``model``, in place, in float32 and complete; the PeftModel.

    ``beside``: the PeftModel that is there already, for a further adapter.

    Raises:
        ValueError: the file lacks a tensor of the adapter, or holds one that the model has no place for.
    """
    from peft import PeftModel

    _require_fractions(Path(folder, WEIGHTS))
    settings: dict[str, Any] = {"is_trainable": trained, "torch_device": str(model.device)}
    with peft_on_new_transformers():
        if beside is None:
            adapters: Any = PeftModel.from_pretrained(model, folder, adapter_name=name, **settings)
        else:
            adapters = beside
            adapters.load_adapter(folder, adapter_name=name, **settings)
        widen(adapters, name)
        # once more, into tensors that hold what the file holds; and only this says what found no place
        loading = adapters.load_adapter(folder, adapter_name=name, **settings)
    stored = _stored_shapes(folder)
    own = {key for key in _adapter_state(adapters, name, carries=False) if "lora_" not in key}
    # PEFT looks for the adapter's name anywhere in a key, where "1" is a layer too
    low_rank = {key for key in loading.missing_keys if key.rpartition("lora_")[2].split(".")[1:2] == [name]}
    missing = sorted({*low_rank, *(own - stored.keys())})
    if missing:
        raise ValueError(f"{folder}: {WEIGHTS} lacks {some(missing)}, which the adapter needs; save it again")
    placeless = sorted(key for key in loading.unexpected_keys if COPIES not in key)
    if placeless:
        raise ValueError(
            f"{folder}: {WEIGHTS} holds {some(placeless)}, for which {type(model).__name__} under this adapter has no "
            f"place; {MERGE}"
        )
    require_finite_weights(folder, adapters)
    remove_randomness(adapters)
    return adapters


def widen(adapters: Any, name: str) -> None:
    """Hold modules that an adapter trains whole (modules_to_save) in float32 at least, as PEFT does its low-rank parts:
    in bfloat16 an update below 1/256 of a weight is lost. Their neighbours see the precision they saw before.

    Raises:
        ValueError: such a module is quantised, so that it cannot be trained.
    """
    from peft.utils import ModulesToSaveWrapper

    for path, module in adapters.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or name not in module.modules_to_save:
            continue
        trained: Any = module.modules_to_save[name]
        kinds = {weight.dtype for weight in trained.parameters()}
        if not all(kind.is_floating_point for kind in kinds):
            raise ValueError(
                f"modules_to_save names {path.removeprefix(PREFIX)!r}, whose weights are quantised and cannot be "
                "trained; load the model without four_bit"
            )
        narrow = {kind for kind in kinds if _too_narrow(kind)}
        if narrow:
            trained.to(torch.float32)
            _compute_between(trained, narrow.pop())


def require_wide(model: nn.Module) -> None:
    """Raise ValueError where a parameter that is to be trained is held in less than float32."""
    found = {key: weight.dtype for key, weight in model.named_parameters() if weight.requires_grad}
    narrow = [f"{key} ({dtype})" for key, dtype in found.items() if _too_narrow(dtype)]
    if narrow:
        raise ValueError(
            f"{type(model).__name__}: {some(narrow)} would be trained in less than float32, where an update below "
            "1/256 of a weight is lost; load with dtype='float32', or train an adapter (LoraSettings)"
        )


def fit_vocabulary(model: PreTrainedModel, folder: str, tokenizer: Any) -> None:
    """Give ``model`` as many embeddings as the adapter in ``folder`` was trained with, where its file holds them.

    Raises:
        ValueError: its file does not hold all the new rows, or its tokenizer has ids beyond them.
    """
    rows, held = vocabulary(model), _held_embeddings(model, folder)
    due = {shape[0] for shape in held.values()}
    sizes = f"{folder} was trained with a vocabulary of {'/'.join(map(str, sorted(due)))}, its base has {rows}"
    lacking = [name for name in _embeddings(model) if name not in held]
    if due and due != {rows}:
        if len(due) > 1 or (lacking and not _tied(model)):
            raise ValueError(f"{sizes}, and {WEIGHTS} lacks the rows of {some(lacking or list(held))}; {MERGE}")
        model.resize_token_embeddings(due.pop(), mean_resizing=False)
        make_lean(model)
    last, rows = max(tokenizer.get_vocab().values()), vocabulary(model)
    if last >= rows:
        raise ValueError(
            f"{folder}: its tokenizer has ids up to {last}, but the model only embeddings of {rows} tokens, and "
            f"{WEIGHTS} holds no more: save the adapter with save_embedding_layers=True, or {MERGE}"
        )


def carries_embeddings(model: PreTrainedModel, folder: str, config: Any) -> bool:
    """Whether the file holds embeddings of the base itself beside what the adapter trains."""
    trained = tuple(config.modules_to_save or ())
    return any(not name.endswith(trained) for name in _held_embeddings(model, folder))


def _adapter_state(adapters: Any, name: str, *, carries: bool) -> dict[str, Tensor]:
    """What a folder of the adapter holds, by PEFT's names; the tensors are the model's own.

    ``carries``: with the base's embeddings, for an adapter that came with them.
    """
    from peft import get_peft_model_state_dict

    # given its state, PEFT does not warn of biases of a low-rank part, which it takes for lost shards
    found: dict[str, Tensor] = get_peft_model_state_dict(
        adapters, state_dict=adapters.state_dict(), adapter_name=name, save_embedding_layers=carries
    )
    return found


def trained_state(adapters: Any, *, carries: bool) -> dict[str, Tensor]:
    """The state of the trained adapter.

    Raises:
        ValueError: a parameter is trained of which no folder would hold anything.
    """
    state = _adapter_state(adapters, TRAINED, carries=carries)
    saved = {tensor.data_ptr() for tensor in state.values()}
    lost = [
        key for key, weight in adapters.named_parameters() if weight.requires_grad and weight.data_ptr() not in saved
    ]
    if lost:
        raise ValueError(f"PEFT would not save {some(lost)}, which this adapter trains; {MERGE}")
    return state


def save_adapter(adapters: Any, folder: str, *, carries: bool = False) -> None:
    """Write the trained adapter where PeftModel.from_pretrained looks for it; without PEFT's card, which names folders
    of this machine."""
    state = trained_state(adapters, carries=carries)
    # clones: one tensor may stand under two names, which the format refuses
    whole = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(whole, Path(folder, WEIGHTS), metadata={"format": "pt"})
    config = copy.copy(adapters.peft_config[TRAINED])
    config.inference_mode = True
    config.save_pretrained(folder)
    base = config.base_model_name_or_path
    if Path(base).is_absolute():
        beside = {"folder": os.path.relpath(base, folder)}
        Path(folder, BESIDE).write_text(json.dumps(beside), encoding="utf-8")


def _stored_shapes(folder: str) -> dict[str, list[int]]:
    """Shapes of the tensors in an adapter's file, by name."""
    with safe_open(Path(folder, WEIGHTS), framework="pt") as weights:
        return {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118


@contextmanager
def peft_on_new_transformers() -> Iterator[None]:
    """PEFT 0.21 reads an attribute that transformers 5.23 renamed and warns about; users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _require_fractions(file: Path) -> None:
    """Check the file's weights before PEFT casts them: floating-point numbers, all finite."""
    weights = read_tensors(file)
    whole = sorted(key for key, tensor in weights.items() if not tensor.is_floating_point())
    if whole:
        raise ValueError(f"{file}: {some(whole)} holds whole numbers, where a weight is expected")
    require_finite(str(file), weights)


def _too_narrow(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and torch.finfo(dtype).bits < 32


def _compute_between(module: nn.Module, dtype: torch.dtype) -> None:
    """Compute ``module`` in float32 between neighbours that compute in ``dtype``."""

    def cast(values: Any, to: torch.dtype) -> Any:
        return tree_map(lambda x: x.to(to) if isinstance(x, Tensor) and x.is_floating_point() else x, values)

    def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return cast(inputs, torch.float32), cast(named, torch.float32)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(lambda _, __, output: cast(output, dtype))


def _embeddings(model: PreTrainedModel) -> list[str]:
    """Names of the input and output embedding."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    return [name for name, module in model.named_modules() if any(module is end for end in ends)]


def _tied(model: PreTrainedModel) -> bool:
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: Any = model.get_input_embeddings()
    return head is None or head.weight is embedding.weight


def _held_embeddings(model: PreTrainedModel, folder: str) -> Mapping[str, list[int]]:
    """Shapes of whole embeddings in an adapter's file, by the name they have in ``model``."""
    found = {}
    for key, shape in _stored_shapes(folder).items():
        for name in _embeddings(model):
            whole = key.startswith(f"{PREFIX}{name}.") and key.endswith(".weight") and len(shape) == 2
            if whole and "lora_" not in key:
                found[name] = shape
    return found
