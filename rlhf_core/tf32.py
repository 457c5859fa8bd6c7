"""TF32: a card multiplies float32 matrices with 10 bits after the point instead of 23, several times faster."""

import torch

FIRST_WITH_TF32 = (8, 0)
"""Compute capability of the first cards that have it (Ampere)."""


def allow_tf32() -> bool:
    """From now on, let CUDA cards multiply float32 matrices in TF32; return whether a card here does.

    The setting belongs to the process, so it holds for every model in it, and no constructor calls this function. A CPU
    multiplies in float32 always. Where no card has TF32, nothing is switched and the answer is False. The bounds of the
    checks on log ratios are wider from then on (``checks.log_ratio_bounds``), and a run that is resumed with the other
    setting warns.
    """
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    if not any(torch.cuda.get_device_capability(card) >= FIRST_WITH_TF32 for card in cards):
        return False
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # a switch of its own: torch's older ones reach CPUs too
    return True


def multiplies_in_tf32() -> bool:
    """Whether a CUDA card multiplies float32 matrices in TF32, whoever allowed it."""
    return torch.cuda.is_available() and torch.backends.cuda.matmul.fp32_precision == "tf32"
