"""The one place where numbers of several processes meet.

Whitening and its variance, the loss's token and response counts, the update's figures (which decide what is skipped
and when the epochs stop), what the KL controller is fed and the running score moments go through here. With one
process a sum over processes is the value itself; data-parallel training replaces this file's body, and adds up the
gradients.
"""

import os

import torch
from torch import Tensor

COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes they started: torchrun and accelerate, srun, and the kinds of mpirun."""


def require_one_process() -> None:
    """Refuse to run as one of several processes: each would train its own model and write to the same files.

    Raises:
        ValueError: a launcher started several processes, or a process group already exists.
    """
    counts = {name: os.environ.get(name, "") for name in COUNTS}
    several = [f"{name}={value}" for name, value in counts.items() if value.strip().isdecimal() and int(value) > 1]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        met = torch.distributed.get_world_size()
        several += [f"a process group of {met}"] if met > 1 else []
    if several:
        raise ValueError(
            f"this is one of several processes ({', '.join(several)}), and training on several is not built yet: each "
            "would train a model of its own. Start one process, without torchrun, accelerate launch, srun or mpirun; "
            "for runs that have nothing to do with each other, unset these variables in each and give each its folder"
        )


def global_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all processes (one, so far)."""
    return value


def global_min(value: Tensor) -> Tensor:
    """Smallest ``value`` of all processes."""
    return value


def global_max(value: Tensor) -> Tensor:
    """Largest ``value`` of all processes."""
    return value
