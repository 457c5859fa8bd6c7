"""An optimizer's state as tensors and JSON, so that no pickle is needed to keep it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_core.files.tensor_files import require_finite

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
        ValueError: the state is that of an optimizer over other parameters, or none that its steps could have left.
    """
    require_finite("the optimizer's state", tensors)
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*numbers["beside"].items(), *tensors.items()]:
        first, *inner, last = name.split(BETWEEN)
        place = int(first)
        if place >= len(shapes):
            raise ValueError(f"the optimizer's state is for a parameter {place}, and there are {len(shapes)}")
        entry = state.setdefault(place, {})
        for key in inner:
            entry = entry.setdefault(key, {})
        entry[last] = value
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and not optimizer.defaults["amsgrad"]:
        _require_moments(state, shapes)
    groups = [{**group, **_tuples(group)} for group in numbers["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _require_moments(state: Mapping[int, Mapping[str, Any]], shapes: Sequence[torch.Size]) -> None:
    """Refuse anything but Adam's two moments, of their parameter's shape, and a step count, for each parameter."""
    for place, held in state.items():
        wanted = {"step": torch.Size(), "exp_avg": shapes[place], "exp_avg_sq": shapes[place]}
        found = {name: getattr(value, "shape", None) for name, value in held.items()}
        if found != wanted:
            raise ValueError(
                f"the optimizer's state of parameter {place} has shapes {found}, and the parameter asks for {wanted}"
            )
        for name in ("step", "exp_avg_sq"):
            if float(held[name].min()) < 0:
                raise ValueError(f"the optimizer's {name} of parameter {place} is negative, which no step makes it")


def _leaves(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}{BETWEEN}")
        else:
            yield f"{prefix}{key}", value


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs (Adam's betas), which JSON turns into lists."""
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
