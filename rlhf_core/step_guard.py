"""Keep bad numbers away from the weights: skip an optimizer step whose loss or gradient is unusable."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf_core.config import PPOConfig
from rlhf_core.names import method_name
from rlhf_core.types import Learns, Rollout

SETTLED = 20
"""Optimizer steps before ``spike_factor`` applies."""
WINDOW = 100
"""Averaging window of the gradient norm, in steps."""


class Diverged(FloatingPointError):
    """More steps in a row had to be skipped than the configuration allows."""


class UnusableRollout(FloatingPointError):
    """A rollout with a number that is not finite, or too large, or with a response that the reward model cannot read;
    nothing has been learned from it."""


@dataclass
class StepGuard:
    """Admits optimizer steps, counts the ones it skips, and ends a run after too many skipped in a row.

    A step is not admitted whose loss or gradient norm is not finite, nor, with ``spike_factor``, one whose gradient
    norm exceeds that many times the mean of those admitted before. Rollouts with numbers that are not finite, or
    larger than ``checks.LARGEST_NUMBER``, are counted with them. ``skipped`` holds a record of each, until
    ``fit`` has written it down.
    """

    max_skipped: int
    spike_factor: float | None
    in_a_row: int = 0
    norms: int = 0
    mean_norm: float = 0.0
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def why_not_admit(self, loss: float, norm: float) -> str:
        """Why a step with this loss and gradient norm must not be taken; empty if it may."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss} and gradient norm {norm} must be finite"
        limit = math.inf if self.spike_factor is None else self.spike_factor * self.mean_norm
        if self.norms >= SETTLED and norm > limit:
            return f"gradient norm {norm:.3g} exceeds {self.spike_factor} x its running mean {self.mean_norm:.3g}"
        return ""

    def admit(self, norm: float) -> None:
        """Take note of a step that was taken."""
        self.in_a_row = 0
        self.norms += 1
        self.mean_norm += (norm - self.mean_norm) / min(self.norms, WINDOW)

    def skip(self, record: Mapping[str, Any]) -> None:
        """Take note of a step that was not; ``record`` says why.

        Raises:
            Diverged: one too many in a row.
        """
        self.skipped.append(dict(record))
        self.in_a_row += 1
        if self.in_a_row > self.max_skipped:
            raise Diverged(
                f"{self.in_a_row} in a row had to be skipped (optimizer steps or rollouts), and max_skipped is "
                f"{self.max_skipped}; the last: {record['reason']}. Weights and optimizer state are as they were "
                "before the first of them; fit lists them in skipped.jsonl. Begin a run with a lower learning_rate, or "
                "with max_grad_norm"
            )

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs to make the same decisions."""
        return {"in_a_row": self.in_a_row, "norms": self.norms, "mean_norm": self.mean_norm}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        self.skipped.clear()
        self.in_a_row, self.norms, self.mean_norm = state["in_a_row"], state["norms"], state["mean_norm"]


def step_guard(config: PPOConfig) -> StepGuard:
    """The guard a configuration asks for."""
    return StepGuard(max_skipped=config.max_skipped, spike_factor=config.spike_factor)


def observed(method: Learns, rollout: Rollout, guard: StepGuard, *, step: int) -> dict[str, float]:
    """Let the ``method`` learn from the ``rollout``. Where what it learned is not finite, or it fails, it knows what it
    knew before, and the ``guard`` notes it under ``step``. Returns figures only then.

    Raises:
        Diverged: one step too many in a row could not be learned from.
    """
    before = {name: tensor.clone() for name, tensor in method.state().items()}
    try:
        method.observe(rollout)
        wrong = [name for name, tensor in method.state().items() if not bool(torch.isfinite(tensor).all())]
        reason = f"{method_name(method)} learned {', '.join(wrong)} that are not finite" if wrong else ""
    except FloatingPointError as error:
        reason = str(error)
    except BaseException:
        method.load_state(before)
        raise
    if not reason:
        return {}
    method.load_state(before)
    guard.skip({"step": step, "what": "observation", "reason": reason})
    return {"skipped_observation": 1.0}
