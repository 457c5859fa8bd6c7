"""The optimizer of a run: create, schedule and step it, and save its state as tensors and JSON, without pickle."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlhf_core.batching import out_of_memory
from rlhf_core.config import PPOConfig
from rlhf_core.files.tensor_files import require_finite

BETWEEN = "/"
"""Stands between the names of nested states (bitsandbytes nests them)."""


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: PPOConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, fused.

    Raises:
        ValueError: there is nothing to train.
    """
    trained = list(parameters)
    if not trained:
        raise ValueError("policy.parameters() is empty: there is nothing to train")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    return torch.optim.Adam(trained, lr=config.learning_rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: PPOConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup_steps``, then constant, or falling linearly to 0 at ``schedule_steps``."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.schedule_steps is None:
            return warm
        left = (config.schedule_steps - step) / (config.schedule_steps - config.warmup_steps)
        return min(warm, max(0.0, left))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@contextmanager
def optimizer_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Clipping and applying a gradient. Where memory runs out before any weight has moved (optimizers make their state
    in the first step), the state is put back to what it was, so that the step can be taken again.

    Raises:
        MemoryError: saying what to lower, and whether weights have moved.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known, versions = set(optimizer.state), [parameter._version for parameter in trained]
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        made = [parameter for parameter in optimizer.state if parameter not in known]
        begun = [parameter for parameter in made if int(optimizer.state[parameter].get("step", 0))]
        for parameter in made:
            if not any(parameter is one for one in begun):
                del optimizer.state[parameter]
        moved = bool(begun) or versions != [parameter._version for parameter in trained]
        raise MemoryError(_no_room_to_step(optimizer, moved)) from error


def _no_room_to_step(optimizer: torch.optim.Optimizer, moved: bool) -> str:
    left = "some weights have moved: go on from the last checkpoint" if moved else "weights and state are as before it"
    return (
        f"optimizer step: out of memory in {type(optimizer).__name__}, which keeps further numbers for every trained "
        f"parameter and makes them in its first step; {left}. Train fewer with lora, keep smaller ones "
        "(optimizer=models.paged_adamw_8bit), load the models with four_bit=True or "
        'dtype="bfloat16", lower PPOConfig.micro_batch_tokens, or free memory that others hold'
    )


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts, "PARAMETER/NAME" by the parameter's place."""
    leaves = _leaves(optimizer.state_dict()["state"])
    return {name: value.detach() for name, value in leaves if isinstance(value, Tensor)}


def state_numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The rest, as JSON: groups with their learning rates, and numbers kept beside a parameter's tensors."""
    found = optimizer.state_dict()
    beside = {name: value for name, value in _leaves(found["state"]) if not isinstance(value, Tensor)}
    return {"groups": found["param_groups"], "beside": beside}


def restore_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Restore both.

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
            if bool((held[name] < 0).any()):
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
