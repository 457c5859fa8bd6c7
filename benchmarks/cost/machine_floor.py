"""The machine's floor: its measured matrix and memory rates, and the least time that a phase takes at these rates."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ADAM_BYTES = 28
"""Read parameter, gradient and two moments, write parameter and moments, each in float32."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured rates of one thread, or of a card."""

    flops: float
    """Floating-point operations per second in a large matrix product."""
    bytes: float
    """Bytes read per second."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of a phase, and the bytes that it must read or write."""

    flops: float = 0.0
    bytes: float = 0.0

    def least(self, rates: Rates) -> float:
        """Seconds at the machine's rates, products and reads overlapping perfectly."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


def measured_rates(dtype: torch.dtype, device: torch.device) -> Rates:
    """The best of several tries of a 2048² matrix product, and of a sum over 256 MiB."""
    square = torch.randn(2048, 2048, device=device).to(dtype)
    long = torch.randn(2**26, device=device)
    product, read = (min(seconds_of(work, device) for _ in range(8)) for work in (lambda: square @ square, long.sum))
    return Rates(flops=2 * 2048**3 / product, bytes=4 * 2**26 / read)


def flop_counter() -> FlopCounterMode:
    """Counts the operations of everything inside, with those of a CPU's fused attention, which torch leaves out."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_aten = torch.ops.aten
CPU_ATTENTION: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, by :func:`clock`."""
    start = clock(device)
    work()
    return clock(device) - start


def clock(device: torch.device) -> float:
    """CPU seconds of this process, or, on a card, seconds of the clock once it is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
