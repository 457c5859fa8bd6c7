"""The paper's own curves (``paper_curves.json.gz``), to stand behind ours where the task is the same.

The file holds, by task and quantity, an array (run, step) for every method.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting.statistics import Array


def paper_curves(file: str | None, *keys: str) -> Mapping[str, Array]:
    """Curves by method at ``keys`` (task and quantity, or "length_sweep" and a range), as long as the method's shortest
    run; {} where no file is given, or it does not hold them.

    Raises:
        ValueError: the file is not of this form.
    """
    if file is None:
        return {}
    try:
        with gzip.open(Path(file), "rt", encoding="utf-8") as lines:
            found: Any = json.load(lines)
        for key in keys:
            found = found.get(key, {})
        return {name: _even(runs) for name, runs in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} does not hold the paper's curves: {error}") from error


def _even(runs: Sequence[Sequence[float]]) -> Array:
    """Runs cut to the shortest: some of the paper's were recorded for longer than the others of their method."""
    steps = min(map(len, runs))
    return np.array([run[:steps] for run in runs], dtype=float)
