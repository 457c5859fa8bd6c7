"""The state of a trainer besides its policy: get it for a checkpoint, and restore it from one."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf_core.batching import Budgets
from rlhf_core.config import PPOConfig
from rlhf_core.files.file_errors import reading
from rlhf_core.kl import KLController
from rlhf_core.optimizer import BETWEEN, restore_state, state_numbers, state_tensors
from rlhf_core.rewards import ScoreMoments
from rlhf_core.run.checkpoint import POLICY, STATE, TrainerState, load_state, why_not_usable
from rlhf_core.run.identity import as_json, made_with, require_same_run
from rlhf_core.run.state_schema import misfits
from rlhf_core.sharding import Sharding, divided, sharding_of
from rlhf_core.step_guard import StepGuard
from rlhf_core.types import Learns, Policy, Redistributor, RewardModel

OPTIMIZER, REDISTRIBUTOR = "optimizer.", "redistributor."


@runtime_checkable
class Restorable(Protocol):
    """The parts of a trainer that its state covers."""

    policy: Policy
    reward: RewardModel
    redistributor: Redistributor
    config: PPOConfig
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    kl_controller: KLController
    score_moments: ScoreMoments
    guard: StepGuard
    budgets: Budgets
    steps_done: int
    trained: bool
    to_conclude: bool
    settings: dict[str, Any]
    run: dict[str, Any] | None


def state_of(trainer: Restorable) -> TrainerState:
    """The state of the trainer besides its policy; of divided weights, this process's part."""
    learned = trainer.redistributor.state() if isinstance(trainer.redistributor, Learns) else {}
    identity = {name: value for name, value in trainer.settings.items() if name not in ("config", "redistributor")}
    numbers = {
        "steps_done": trainer.steps_done,
        "trained": trainer.trained,
        "kl_coef": trainer.kl_controller.coef,
        "score_moments": asdict(trainer.score_moments),
        "guard": trainer.guard.state(),
        "budgets": trainer.budgets.state(),
        "optimizer": state_numbers(trainer.optimizer),
        "schedule": trainer.schedule.state_dict(),
        "redistributor": trainer.settings["redistributor"],
        "config": trainer.settings["config"],
        "identity": {**identity, "made_with": made_with(trainer.reward)},
        "run": trainer.run,
    }
    tensors = {f"{OPTIMIZER}{name}": value for name, value in state_tensors(trainer.optimizer).items()}
    tensors |= {f"{REDISTRIBUTOR}{name}": value for name, value in learned.items()}
    return TrainerState(numbers=numbers, tensors=tensors)


def whole_state_of(trainer: Restorable) -> TrainerState:
    """The same with the optimizer's tensors put together in the first process, on its CPU. Every process calls it."""
    return _converted(trainer, state_of(trainer), lambda sharding, tensor, part: sharding.whole(tensor, part))


def why_not_restored(trainer: Restorable, checkpoint: Path) -> str:
    """Why ``checkpoint`` cannot be restored into the trainer, whichever run it is of; empty if it can."""
    if reason := why_not_usable(checkpoint):
        return reason
    found = islice(misfits(load_state(checkpoint).numbers, as_json(state_of(trainer).numbers)), 5)
    return "; ".join(f"its {STATE} is of another version, or damaged: {misfit}" for misfit in found)


def restore(trainer: Restorable, checkpoint: Path) -> None:
    """See ``PPOTrainer.restore``; raises as it does."""
    if reason := why_not_restored(trainer, checkpoint):
        raise ValueError(f"{checkpoint} cannot be used: {reason}")
    state = _converted(trainer, load_state(checkpoint), lambda sharding, tensor, part: sharding.own(tensor, part))
    require_same_run(trainer, state.numbers, checkpoint)
    before, kept = state_of(trainer), copy.deepcopy((trainer.guard, trainer.budgets))
    with reading(str(checkpoint)):
        try:
            _put(trainer, state)
            trainer.policy.restore(str(checkpoint / POLICY))
        except BaseException:
            _put(trainer, before)
            trainer.guard, trainer.budgets = kept
            raise
    trainer.to_conclude = False


def _converted(
    trainer: Restorable, state: TrainerState, convert: Callable[[Sharding, Tensor, torch.nn.Parameter], Tensor]
) -> TrainerState:
    """The state with what belongs to divided weights converted, from a part to the whole or back; as it is where none
    are divided."""
    sharding = sharding_of(trainer.policy)
    if sharding is None:
        return state
    converted = {name: convert(sharding, state.tensors[name], part) for name, part in _parts(trainer, state.tensors)}
    return TrainerState(numbers=state.numbers, tensors={**state.tensors, **converted})


def _parts(trainer: Restorable, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names of the optimizer's tensors that are divided as a weight is, in one order, with this process's part of it;
    a step count is not."""
    trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    parts = {str(place): one for place, one in enumerate(trained) if id(one) in divided(trainer.policy)}
    for name in sorted(tensors):
        place = name.removeprefix(OPTIMIZER).split(BETWEEN)[0]
        if name.startswith(OPTIMIZER) and place in parts and tensors[name].ndim:
            yield name, parts[place]


def _put(trainer: Restorable, state: TrainerState) -> None:
    """Restore what ``state`` returned, everything but the policy."""
    numbers, learned = state.numbers, _part(state.tensors, REDISTRIBUTOR)
    strange = [name for name in state.tensors if not name.startswith((OPTIMIZER, REDISTRIBUTOR))]
    if strange or (learned and not isinstance(trainer.redistributor, Learns)):
        raise ValueError(f"its tensors {sorted([*strange, *learned])[:3]} belong to no part of this trainer")
    restore_state(trainer.optimizer, _part(state.tensors, OPTIMIZER), numbers["optimizer"])
    if isinstance(trainer.redistributor, Learns):
        trainer.redistributor.load_state(learned)
    trainer.schedule.load_state_dict(dict(numbers["schedule"]))
    trainer.kl_controller.coef = numbers["kl_coef"]
    trainer.score_moments = ScoreMoments(**numbers["score_moments"])
    trainer.guard.restore(numbers["guard"])
    trainer.budgets.restore(numbers["budgets"])
    trainer.steps_done, trainer.trained, trainer.run = numbers["steps_done"], numbers["trained"], numbers["run"]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
