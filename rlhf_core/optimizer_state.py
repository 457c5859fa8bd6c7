"""An optimizer's state as tensors and JSON, so that no pickle is needed to keep it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

BETWEEN = "/"
"""Stands between the names of nested states (bitsandbytes nests them)."""


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts, "PARAMETER/NAME" by the parameter's place."""
    leaves = _leaves(optimizer.state_dict()["state"])
    return {name: value.detach() for name, value in leaves if isinstance(value, Tensor)}


def numbers_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The rest, as JSON: groups with their learning rates, and numbers kept beside a parameter's tensors."""
    found = optimizer.state_dict()
    beside = {name: value for name, value in _leaves(found["state"]) if not isinstance(value, Tensor)}
    return {"groups": found["param_groups"], "beside": beside}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put both back.

    Raises:
        ValueError: the state is that of an optimizer over other parameters.
    """
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*numbers["beside"].items(), *tensors.items()]:
        first, *inner, last = name.split(BETWEEN)
        place = int(first)
        if place >= len(shapes):
            raise ValueError(f"the optimizer's state is for a parameter {place}, and there are {len(shapes)}")
        if last in ("exp_avg", "exp_avg_sq") and value.shape != shapes[place]:
            raise ValueError(
                f"the optimizer's {last} of parameter {place} has shape {tuple(value.shape)}, and the parameter "
                f"{tuple(shapes[place])}"
            )
        entry = state.setdefault(place, {})
        for key in inner:
            entry = entry.setdefault(key, {})
        entry[last] = value
    groups = [{**group, **_tuples(group)} for group in numbers["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _leaves(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}{BETWEEN}")
        else:
            yield f"{prefix}{key}", value


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs (Adam's betas), which JSON turns into lists."""
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
