"""Every advantage estimator under every method's credit, as tables: bias and noise of the expected policy gradient."""

from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np

from benchmarks.reporting.tables import Table
from benchmarks.worlds.estimator_gradients import SIZE, GroupGradient, group_gradient
from benchmarks.worlds.tabular import random_world
from benchmarks.worlds.tabular_evidence import Unanswerable
from rlhf_core.config import Advantages
from rlhf_core.types import Redistributor

LONGEST = 3
"""Longest response in tokens: all groups of ``SIZE`` responses are added up, and they grow with its square."""
NAMES: tuple[Advantages, ...] = get_args(Advantages)

Found = Mapping[str, Mapping[str, list[GroupGradient]]]


def estimator_gradients(methods: Mapping[str, Callable[[], Redistributor]], *, worlds: int, words: int) -> Found:
    """By method and estimator, what was found in each of ``worlds`` small worlds; nothing for a method that cannot be
    asked there."""
    made = [random_world(words=words, shortest=1, longest=LONGEST, seed=seed) for seed in range(worlds)]
    found: dict[str, Mapping[str, list[GroupGradient]]] = {}
    for method, make in methods.items():
        try:
            found[method] = {name: [group_gradient(world, name, make) for world in made] for name in NAMES}
        except Unanswerable:
            continue
    return found


def bias_table(found: Found) -> Table:
    """Cosine of the expected gradient with the true one, and how long it is: a row for every method."""
    return Table(
        title="estimator x credit: cosine of the expected gradient (its length)",
        columns=("method", *NAMES),
        rows=tuple((method, *(_bias(by_name[name]) for name in NAMES)) for method, by_name in found.items()),
        notes=(
            f"All groups of {SIZE} responses to one prompt, enumerated; means over worlds. 1.000 (1.00) is unbiased.",
            "Length: the expected gradient's component along the true one, over the true one's. Before any whitening.",
            "Estimators that add up a response's rewards show the same figures for every conserving method.",
        ),
    )


def noise_table(found: Found) -> Table:
    """Variance of one group's gradient over the squared length of the expected one: a row for every method."""
    return Table(
        title="estimator x credit: variance of one group's gradient / squared expected gradient",
        columns=("method", *NAMES),
        rows=tuple(
            (method, *(float(np.mean([one.variance for one in by_name[name]])) for name in NAMES))
            for method, by_name in found.items()
        ),
        notes=("GAE has the exact critic of each method's credit, which no run has.",),
    )


def _bias(ones: list[GroupGradient]) -> str:
    return f"{np.mean([one.cosine for one in ones]):.3f} ({np.mean([one.size for one in ones]):.2f})"
