"""Random initial weights that depend only on a seed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """What is drawn inside, on the CPU or on ``device``, depends on ``seed`` alone; torch's global generators of the
    two are left as they were."""
    kind = torch.device(device).type
    seed_all = torch.default_generator.manual_seed if kind == "cpu" else torch.manual_seed
    with torch.random.fork_rng(devices=[] if kind == "cpu" else [torch.device(device)], device_type=kind):
        seed_all(seed)
        yield
