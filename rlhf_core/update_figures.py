"""The figures of an update: of its micro-batches, its minibatches, and all of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Measured = tuple[dict[str, Tensor], dict[str, float]]
"""Figures of a micro-batch, still on their device, and the share of its minibatch's that each is."""
MAXIMA = ("ratio_max", "log_ratio_max")
NORMS = ("gradient_norm", "critic_gradient_norm")
MEANS = ("policy_loss", "value_loss", "entropy", "clip_fraction", "value_clip_fraction", "approx_kl", "logprob_drop")


@dataclass
class UpdateStatistics:
    """Sums over the minibatches of one update, and the metrics computed from them."""

    taken: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    refused: int = 0
    stopped_early: bool = False
    ratio_max: float = 0.0
    response_losses: list[float] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Metrics of the update. Means are over the tokens of all minibatches that were stepped on."""
        tokens = sum(minibatch["tokens"] for minibatch in self.taken)
        means = {
            name: sum(minibatch[name] * minibatch["tokens"] for minibatch in self.taken) / tokens
            for name in MEANS
            if tokens
        }
        for name in NORMS if self.taken else ():
            if name in self.taken[0]:
                means[name] = sum(minibatch[name] for minibatch in self.taken) / len(self.taken)
        if self.response_losses:
            means["value_loss_paper"] = sum(self.response_losses) / len(self.response_losses)
        if self.first:
            means["first_log_ratio_max"] = self.first["log_ratio_max"]
            means["first_log_ratio_mean"] = self.first["log_ratio"]
        return {
            **means,
            "ratio_max": self.ratio_max,
            "skipped_minibatches": float(self.skipped),
            "refused_minibatches": float(self.refused),
            "stopped_early": float(self.stopped_early),
        }


def contributions(measured: Sequence[Measured]) -> list[dict[str, float]]:
    """What each micro-batch adds to the figures of its minibatch, all of them read at once."""
    numbers = iter(read_at_once([mean for means, _ in measured for mean in means.values()]))
    return [{name: next(numbers) * share for name, share in shares.items()} for _, shares in measured]


def read_at_once(numbers: Collection[Tensor]) -> list[float]:
    """The ``numbers`` in one transfer."""
    # where nothing has a gradient, its norm is made on the CPU
    device = max((number.device for number in numbers), key=lambda device: device.type != "cpu")
    read: list[float] = torch.stack([number.to(device, non_blocking=True) for number in numbers]).tolist()
    return read
