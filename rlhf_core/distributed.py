"""The one place where numbers of several processes meet.

Means, whitening, the loss's token counts and the KL controller add up through ``global_sum``. With one process a
sum over processes is the value itself; data-parallel training replaces this file's body and nothing else.
"""

from torch import Tensor


def global_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all processes (one, so far)."""
    return value
