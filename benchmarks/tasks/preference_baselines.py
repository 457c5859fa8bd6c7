"""How well a rule on surface features alone predicts which of two responses people prefer.

Bradley-Terry on the differences of the features: P(first preferred) = σ(w · (f(first) - f(second))). There is no
intercept, as which response comes first means nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize

from benchmarks.data.hold_out import folds
from benchmarks.data.preference_tokens import TokenisedExample
from benchmarks.data.surface_features import FEATURES, LENGTH, surface_features
from benchmarks.reporting.statistics import Array

FOLDS = 10
PENALTY = 1.0
"""Weight of ½‖w‖² beside the sum of -log σ(w · difference) over pairs, in units of each feature's own spread."""

BASELINES: Mapping[str, tuple[str, ...]] = {"surface_features": tuple(FEATURES), "length_alone": (LENGTH,)}
"""The features that each baseline sees."""


def baseline_margins(rows: Sequence[TokenisedExample]) -> dict[str, Array]:
    """Of each baseline, its margin (chosen minus rejected, above 0 where it is right) on every pair, learned from the
    pairs of other prompts: ten folds by prompt, fewer where there are fewer prompts."""
    keys = [row.key for row in rows]
    fold = folds(keys, min(FOLDS, len(set(keys))))
    differences = feature_differences(rows)
    names = list(FEATURES)
    return {
        baseline: _cross_validated(differences[:, [names.index(name) for name in seen]], fold)
        for baseline, seen in BASELINES.items()
    }


def feature_differences(rows: Sequence[TokenisedExample]) -> Array:
    """Features of the preferred response minus those of the other, (pair, feature); read from the whole texts."""
    found = [[surface_features(row.written.prompt, text) for text in row.written.responses] for row in rows]
    chosen, rejected = np.array(found).swapaxes(0, 1)
    return np.asarray(chosen - rejected, dtype=np.float64)


def fit(differences: Array) -> Array:
    """The weights w, (feature,), in units of the features: minimise Σ -log σ(w · d) + ``PENALTY``/2 ‖w · spread‖² over
    the differences d, (pair, feature), of preferred responses to others; the spread is their root mean square."""
    spread = np.sqrt((differences**2).mean(0))
    spread[spread == 0] = 1.0  # a feature that never differs gets no weight
    scaled = differences / spread

    def loss(weights: Array) -> tuple[float, Array]:
        margins = scaled @ weights
        unsure = 1 / (1 + np.exp(np.clip(margins, -500, 500)))
        value = np.logaddexp(0, -margins).sum() + PENALTY / 2 * weights @ weights
        return float(value), PENALTY * weights - scaled.T @ unsure

    found = optimize.minimize(loss, np.zeros(differences.shape[1]), jac=True, method="BFGS")
    return np.asarray(found.x / spread, dtype=np.float64)


def _cross_validated(differences: Array, fold: Sequence[int]) -> Array:
    margins = np.zeros(len(differences))
    for number in set(fold):
        tested = np.array(fold) == number
        margins[tested] = differences[tested] @ fit(differences[~tested])
    return margins
