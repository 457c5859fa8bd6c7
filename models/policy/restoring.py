"""Read weights back into an existing network, bit for bit; nothing else of it changes.

The files are checked as when a model is first loaded. The functions change nothing; calling their results does.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.weights.adapter_weights import WEIGHTS, trained_state
from models.weights.division import local, original_class, own_rows
from models.weights.folder_kinds import Wanted
from models.weights.language_model import read_model, require_complete
from models.weights.reference import TRAINED
from models.weights.source import ModelSource
from rlhf_core.files.tensor_files import read_tensors, require_same_tensors


def read_model_back(lm: PreTrainedModel, folder: str, *, wanted: Wanted = "language model") -> Callable[[], None]:
    """All weights of a whole model, which was read as ``wanted``, from what its ``save_pretrained`` wrote; the folder's
    own config is not asked.

    Raises:
        ValueError: weights that are missing or of another shape, or what a policy's folder is refused for.
    """
    config = copy.deepcopy(lm.config)
    config.transformers_weights = None  # where the model came from may have named its file so; what was saved does not
    source = ModelSource(name_or_path=folder)
    saved, loading = read_model(original_class(lm), source, lm.dtype, wanted=wanted, config=config)
    require_complete(folder, saved, loading)
    found, due = (dict(model.named_parameters()) for model in (saved, lm))
    require_same_tensors(folder, found, due)
    return partial(_put, found, due)


@torch.no_grad()
def _put(found: Mapping[str, Tensor], due: Mapping[str, Tensor]) -> None:
    for name, parameter in due.items():
        local(parameter).copy_(own_rows(found[name], parameter))


def read_adapter_back(adapters: Any, folder: str, *, carries: bool = False) -> Callable[[], object]:
    """The trained adapter, from what ``save_adapter`` wrote.

    Raises:
        ValueError: the file holds another adapter.
    """
    from peft import set_peft_model_state_dict

    ModelSource(name_or_path=folder)  # refuses a folder with files that are not its own, or damaged ones
    file = Path(folder, WEIGHTS)
    weights = read_tensors(file)
    require_same_tensors(str(file), weights, trained_state(adapters, carries=carries))
    return partial(set_peft_model_state_dict, adapters, weights, adapter_name=TRAINED)
