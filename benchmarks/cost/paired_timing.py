"""Two ways of doing the same thing, compared: operations, memory, and time taken in turn."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats

from benchmarks.cost.machine_floor import flop_counter, seconds_of
from benchmarks.cost.tensor_meter import TensorMeter
from benchmarks.reporting.statistics import Summary

CPU = torch.device("cpu")
Pass = Callable[[], object]
Timed = Callable[[], float]


def flops(work: Pass) -> int:
    """Operations of a pass."""
    with flop_counter() as counter:
        work()
    return int(counter.get_total_flops())


def peak_bytes(work: Pass) -> int:
    """Most bytes of tensors alive that the pass made."""
    with TensorMeter() as meter:
        work()
    return int(meter.peak())


def timed(work: Pass) -> Timed:
    """The pass as one that returns its CPU seconds."""
    return lambda: seconds_of(work, CPU)


def paired_seconds(kinds: Sequence[Pass], budget: float) -> list[list[float]]:
    """CPU seconds of each kind, passes in turn, until the budget of CPU seconds is spent; 5 to 60 of each."""

    def go_on(taken: list[list[float]]) -> bool:
        return len(taken[0]) < 5 or (sum(map(sum, taken)) < budget and len(taken[0]) < 60)

    return in_turn([timed(kind) for kind in kinds], go_on)


def in_turn(kinds: Sequence[Timed], go_on: Callable[[list[list[float]]], bool]) -> list[list[float]]:
    """Seconds of each kind, one pass of each in turn, first to last and last to first alternately."""
    taken: list[list[float]] = [[] for _ in kinds]
    while go_on(taken):
        order = range(len(kinds)) if len(taken[0]) % 2 else range(len(kinds) - 1, -1, -1)
        for kind in order:
            taken[kind].append(kinds[kind]())
    return taken


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> Summary:
    """Median of paired ratios with its percentile bootstrap interval."""
    ratios = np.asarray(slow) / np.asarray(fast)
    found = stats.bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return Summary(mean=float(np.median(ratios)), low=float(low), high=float(high), kind="95 % interval")
