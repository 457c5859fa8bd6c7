"""What a run is: its settings and a measurement of its models, so that another is not taken for it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch

from rlhf_core.config import PPOConfig
from rlhf_core.guard import UnusableRollout
from rlhf_core.health import log_ratio_bounds
from rlhf_core.rewards import TextReward, TokenReward
from rlhf_core.types import Learns, Policy, Redistributor, RewardModel, Sequences

MAY_CHANGE = frozenset(
    {"eval_every", "config.micro_batch_tokens", "config.sampling_tokens", "config.first_step_checks"}
)
"""What decides how a run is computed or logged, not what comes out of it beyond rounding."""
MEASURED = 4
SCORE_TOLERANCE = 1e-2


def run_settings(
    config: PPOConfig,
    redistributor: Redistributor,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Everything a resumed run is compared in, as JSON gives it back."""
    settings = {
        "config": asdict(config),
        "redistributor": _name(redistributor),
        "optimizer": f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in optimizer.defaults.items())})",
        "prompts": _hash(prompts),
        "eval_prompts": _hash(held_out),
    }
    return as_json(settings)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples are lists."""
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def differences(noted: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Each setting that is another now and must not be, in words."""
    for name in sorted(noted.keys() | now.keys()):
        was, is_now = noted.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from differences(was, is_now, f"{prefix}{name}.")
        elif was != is_now and f"{prefix}{name}" not in MAY_CHANGE:
            yield f"{prefix}{name} was {was!r} and is {is_now!r}"


@torch.no_grad()
def model_measurement(
    policy: Policy, reward: RewardModel, prompts: Sequence[Sequence[int]], longest: int
) -> dict[str, Any]:
    """Mean reference log-probability (nats a token) and score of the first prompts, each with itself for a response.
    A callable's scores are left out, as it need not answer twice alike, and those that are not finite or cannot be
    had of such responses."""
    sequences = _repeated(prompts[:MEASURED], longest)
    logprobs = policy.reference_logprobs(sequences).sum(1).cpu() / sequences.response_mask.sum(1).cpu()
    measured = {"reference": logprobs.tolist()}
    if not isinstance(reward, TextReward | TokenReward):
        with suppress(UnusableRollout):
            scores = reward.score(sequences, frozenset()).scores
            if bool(torch.isfinite(scores).all()):
                measured["scores"] = scores.tolist()
    return measured


def changed_models(noted: Mapping[str, Any], now: Mapping[str, Any], dtype: torch.dtype) -> Iterator[str]:
    """Which of the two models answers otherwise than it did when the run began, in words."""
    allowed, _ = log_ratio_bounds(dtype)
    for what, tolerance in (("reference", 10 * allowed), ("scores", SCORE_TOLERANCE)):
        if what not in noted or what not in now:
            continue
        before, after = (torch.tensor(measured[what], dtype=torch.float64) for measured in (noted, now))
        if before.shape != after.shape or bool(((before - after).abs() > tolerance * before.abs().clamp(min=1)).any()):
            yield f"{what} of the first prompts were {before.tolist()} and are {after.tolist()}"


def _repeated(prompts: Sequence[Sequence[int]], longest: int) -> Sequences:
    """Each prompt, and itself for a response, cut to ``longest`` tokens."""
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


def _name(redistributor: Redistributor) -> str:
    """Its settings, without the place in memory that Python shows where a class has no representation of its own, and
    without what it has learned since."""
    if isinstance(redistributor, Learns):
        return type(redistributor).__qualname__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(redistributor))


def _hash(prompts: Sequence[Sequence[int]]) -> str:
    return f"{len(prompts)} prompts, sha256 {sha256(json.dumps([list(row) for row in prompts]).encode()).hexdigest()}"
