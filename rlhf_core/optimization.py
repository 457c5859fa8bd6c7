"""Optimizer and learning-rate schedule of a run."""

from collections.abc import Iterable

import torch

from rlhf_core.config import PPOConfig


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
