"""The one place where numbers of several processes meet.

Whitening and its variance, the loss's token and response counts, the update's figures (which decide what is skipped
and when the epochs stop), what the KL controller is fed and the running score moments go through here. With one
process a sum over processes is the value itself; data-parallel training replaces this file's body, and adds up the
gradients.
"""

from torch import Tensor


def global_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all processes (one, so far)."""
    return value


def global_min(value: Tensor) -> Tensor:
    """Smallest ``value`` of all processes."""
    return value


def global_max(value: Tensor) -> Tensor:
    """Largest ``value`` of all processes."""
    return value
