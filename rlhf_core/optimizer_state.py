"""An optimizer's state as tensors and JSON, so that no pickle is needed to keep it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts, "PARAMETER.NAME" by the parameter's place."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{place}.{name}": value.detach()
        for place, entry in state.items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def numbers_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The rest, as JSON: groups with their learning rates, and numbers kept beside a parameter's tensors."""
    found = optimizer.state_dict()
    beside = {
        str(place): {name: value for name, value in entry.items() if not isinstance(value, Tensor)}
        for place, entry in found["state"].items()
    }
    return {"groups": found["param_groups"], "beside": beside}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put both back.

    Raises:
        ValueError: the state is that of an optimizer over other parameters.
    """
    state: dict[int, dict[str, Any]] = {int(place): dict(entry) for place, entry in numbers["beside"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        place, _, name = key.partition(".")
        if int(place) >= len(parameters):
            raise ValueError(f"the optimizer's state is for a parameter {place}, and there are {len(parameters)}")
        wanted = parameters[int(place)].shape
        if name in ("exp_avg", "exp_avg_sq") and tensor.shape != wanted:
            raise ValueError(
                f"the optimizer's {name} of parameter {place} has shape {tuple(tensor.shape)}, not {tuple(wanted)}"
            )
        state.setdefault(int(place), {})[name] = tensor
    groups = [{**group, **_tuples(group)} for group in numbers["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs (Adam's betas), which JSON turns into lists."""
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
