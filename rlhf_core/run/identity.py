"""The identity of a run, its settings and a measurement of its models, so that no other run is mistaken for it."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from rlhf_core.checks import log_ratio_bounds
from rlhf_core.config import PPOConfig
from rlhf_core.evidence import AuxiliaryLogprobs
from rlhf_core.files.differences import differences
from rlhf_core.files.file_errors import reading
from rlhf_core.prompts import Prompts, own_row
from rlhf_core.run.description import HasIdentity, code_of, described
from rlhf_core.run.model_card import versions
from rlhf_core.step_guard import UnusableRollout
from rlhf_core.tf32 import multiplies_in_tf32
from rlhf_core.types import Policy, ReadsRows, Redistributor, RewardModel, Sequences

MAY_CHANGE = frozenset(
    {"eval_every", "config.micro_batch_tokens", "config.sampling_tokens", "config.first_step_checks"}
)
"""Settings that change how a run is computed or logged, but not its numbers, except by rounding."""
OF_THE_OPTIMIZER = frozenset({"config.optimizer", "config.learning_rate", "config.weight_decay"})
"""Settings that an optimizer is made of, where the caller gives none."""
THE_OPTIMIZER = frozenset({"optimizer", "parameter_groups"})
"""The optimizer that was made, in full."""
MEASURED = 4
SCORE_TOLERANCE = 1e-2


def trainer_settings(
    config: PPOConfig,
    redistributor: Redistributor,
    policy: Policy,
    reward: RewardModel,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Everything that determines a trainer's numbers besides weights and prompts, as JSON reads it back. Call it before
    anything is learned, because a method that learns is identified by its initial state."""
    settings = {
        "config": asdict(config),
        "redistributor": described(redistributor),
        "policy": described(policy) if isinstance(policy, HasIdentity) else "",
        "reward": described(reward) if isinstance(reward, HasIdentity) or is_dataclass(reward) else _name(reward),
        "optimizer": f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in optimizer.defaults.items())})",
        "parameter_groups": [*map(_group, optimizer.param_groups)],
    }
    return as_json(settings)


def made_with(reward: RewardModel) -> dict[str, str]:
    """Versions, code and the process's precision, which may change between two parts of a run, for example to fix a
    bug. They may change its numbers, so a change gives a warning, and the run continues."""
    scorer = getattr(reward, "fn", None)
    found = {**dict(versions()), "code of the reward function": code_of(scorer) if callable(scorer) else ""}
    return {**found, "float32 products": "TF32"} if multiplies_in_tf32() else found


def warn_of_changes(noted: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Warn of every part of ``made_with`` that has changed."""
    changed = "; ".join(differences(noted, now))
    if changed:
        words = f"{where} was made with other versions, so further numbers may differ: {changed}"
        warnings.warn(words, RuntimeWarning, stacklevel=2)


def prompt_settings(
    prompts: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], given: Prompts, held_out_given: Prompts
) -> dict[str, str]:
    """The prompts of training and evaluation: their ids, and the caller's texts, chats and columns, which a callable
    reads (different texts may have the same ids)."""
    return {"prompts": _hash(prompts, given), "eval_prompts": _hash(held_out, held_out_given)}


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The value as JSON reads it back: tuples become lists."""
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


@runtime_checkable
class OfARun(Protocol):
    """The parts of a trainer that decide which checkpoints belong to it."""

    policy: Policy
    reward: RewardModel
    redistributor: Redistributor
    config: PPOConfig
    settings: dict[str, Any]
    run: dict[str, Any] | None
    """Prompts and models of the current run; None before one begins."""


@torch.no_grad()
def model_measurement(trainer: OfARun, prompts: Sequence[Sequence[int]], longest: int) -> dict[str, Any]:
    """A measurement of the frozen models on the first prompts, each with itself as response: mean log-probability (nats
    per token) under the reference and the auxiliaries that the redistributor reads, and score. It includes the prompts,
    so that it can be repeated. Scores of a callable are left out, because it may give another answer each time and may
    need columns; so are scores that are not finite or cannot be computed for such responses."""
    policy, temperature = trainer.policy, trainer.config.temperature
    asked = [list(prompt) for prompt in prompts[:MEASURED]]
    sequences = _repeated(asked, longest)
    lengths = sequences.response_mask.sum(1).cpu()
    beside = frozenset(request for request in trainer.redistributor.needs if isinstance(request, AuxiliaryLogprobs))
    told = {"reference": policy.reference_logprobs(sequences, temperature=temperature)}
    if beside:
        evidence = policy.evaluate(sequences, beside, temperature=temperature).evidence
        told |= {f"auxiliary {request.name}": evidence[request] for request in beside}
    said = {what: (logprobs.sum(1).cpu() / lengths).tolist() for what, logprobs in sorted(told.items())}
    if not isinstance(trainer.reward, ReadsRows):
        with suppress(UnusableRollout):
            scores = trainer.reward.score(sequences, frozenset()).scores
            if bool(torch.isfinite(scores).all()):
                said["scores"] = scores.tolist()
    return {"prompts": asked, "longest": longest, "said": said}


def measured_again(noted: object, trainer: OfARun, where: str) -> dict[str, Any]:
    """The same measurement of the models as they are now.

    Raises:
        ValueError: prompts that this policy cannot read, or what no measurement is.
    """
    given = noted if isinstance(noted, dict) else {}
    prompts, longest = given.get("prompts"), given.get("longest")
    rows = isinstance(prompts, list) and all(
        isinstance(row, list) and all(type(i) is int and 0 <= i < 2**31 for i in row) for row in prompts
    )
    if not (rows and prompts) or type(longest) is not int or not 0 < longest < 2**31:
        raise ValueError(
            f"{where}: what its models were measured on is damaged: prompts {prompts!r}, longest {longest!r}"
        )
    with reading(where):
        trainer.policy.validate(prompts, longest)
    return model_measurement(trainer, prompts, longest)


def require_same_run(trainer: OfARun, numbers: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse a ``checkpoint`` whose state belongs to another run than the trainer's; changed versions give only a
    warning.

    Raises:
        ValueError: naming every difference.
    """
    identity, run = numbers["identity"], numbers["run"]
    if not isinstance(identity, dict) or not (run is None or isinstance(run, dict)):
        raise ValueError(f"{checkpoint}: its state does not say which run it is of: {identity!r}, {run!r}")
    before = {**identity, **{name: numbers[name] for name in ("config", "redistributor")}}
    versions, now = before.pop("made_with", None), dict(trainer.settings)
    models = None if run is None else run.get("models")
    if run is not None and trainer.run is not None:  # a checkpoint saved by hand has no prompts to compare
        before |= {name: value for name, value in run.items() if name != "models"}
        now |= {name: value for name, value in trainer.run.items() if name != "models"}
    changed = changed_settings(before, now)
    if models is not None and not changed:
        again = measured_again(models, trainer, str(checkpoint))
        changed = [*changed_models(models, again, trainer.policy.compute_dtype)]
    if changed:
        raise ValueError(f"{checkpoint} belongs to a run with other settings: {'; '.join(changed)}")
    warn_of_changes(versions if isinstance(versions, dict) else {}, made_with(trainer.reward), str(checkpoint))


def changed_settings(noted: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that give other numbers than when the run began, in words. Where those of the optimizer differ, the
    optimizer that follows from them is not named besides."""
    changed = differences(noted, now, free=MAY_CHANGE | THE_OPTIMIZER)
    if any(line.partition(" was ")[0] in OF_THE_OPTIMIZER for line in changed):
        return changed
    return differences(noted, now, free=MAY_CHANGE)


def changed_models(noted: Mapping[str, Any], now: Mapping[str, Any], dtype: torch.dtype) -> Iterator[str]:
    """The models that give other numbers than when the run began, in words."""
    allowed, _ = log_ratio_bounds(dtype)
    said = noted.get("said")
    before_said: Mapping[str, Any] = said if isinstance(said, dict) else {"reference": said}
    for what in sorted({"reference", *before_said} & now["said"].keys()):
        before, after, tolerance = before_said.get(what), now["said"][what], SCORE_TOLERANCE
        if what != "scores":
            tolerance = min(10 * allowed, 1.0)  # a log-probability that moved by its own size is no rounding
        if not _alike(before, after, tolerance):
            yield f"{what} of the first prompts were {before} and are {after}"


def _alike(before: object, after: list[float], tolerance: float) -> bool:
    if not isinstance(before, list) or len(before) != len(after) or not all(map(_is_measured, before)):
        return False
    return all(abs(one - other) <= tolerance * max(abs(one), 1) for one, other in zip(before, after, strict=True))


def _is_measured(number: object) -> bool:
    return type(number) in (int, float) and -1e38 < number < 1e38  # type: ignore[operator]  # a number by then


def _repeated(prompts: Sequence[Sequence[int]], longest: int) -> Sequences:
    """Each prompt, and the same prompt as its response, cut to ``longest`` tokens."""
    responses = [prompt[:longest] for prompt in prompts]
    before, after = max(map(len, prompts)), max(map(len, responses))
    lengths = torch.tensor(list(map(len, responses)))
    return Sequences(
        prompt_ids=torch.tensor([[*[0] * (before - len(row)), *row] for row in prompts]),
        prompt_mask=torch.tensor([[False] * (before - len(row)) + [True] * len(row) for row in prompts]),
        response_ids=torch.tensor([[*row, *[0] * (after - len(row))] for row in responses]),
        response_mask=torch.arange(after) < lengths[:, None],
        min_lengths=torch.zeros_like(lengths),
        max_lengths=lengths,
        finished=lengths > 0,
    )


def _name(model: object) -> str:
    return type(model).__qualname__


def _group(group: Mapping[str, Any]) -> str:
    """A group of parameters: how many, and how they are trained; without the learning rate, which the schedule
    changes."""
    settings = {name: value for name, value in group.items() if name not in ("params", "lr")}
    return f"{len(group['params'])} parameters, {described(settings)}"


def _hash(prompts: Sequence[Sequence[int]], given: Prompts) -> str:
    """One row at a time, of which a table may hold more than memory."""
    content = sha256(json.dumps([list(row) for row in prompts]).encode())
    for row in map(own_row, given):
        content.update(described(sorted(row.items())).encode())
    return f"{len(prompts)} prompts, sha256 {content.hexdigest()}"
