"""Ridge regression on data that arrives in parts; it stores only sums."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.files.tensor_files import require_same_tensors


class RecursiveRidge:
    """argmin_w Σ_i λ^{age_i} (y_i − w·x_i)² + ridge · Σ_j G_jj w_j², with G = Σ_i λ^{age_i} x_i x_iᵀ and λ = ``decay``.

    That is ridge regression (Hoerl and Kennard 1970) with each feature scaled to mean square 1 and a penalty of
    ridge times the number of observations: the units of a feature make no difference, and neither does how much was
    seen. Kept are G and Σ λ^{age} x y (and nothing that was observed), in float64 on the CPU: taken in part by part or
    at once, the fit is the same. ``age`` counts the later calls of ``observe``.

    Raises:
        ValueError: a ridge that is not positive, or a decay outside (0, 1].
    """

    def __init__(self, *, size: int, ridge: float, decay: float) -> None:
        if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 < ridge < float("inf"):
            raise ValueError(f"ridge is the strength of the penalty, a number above 0, got {ridge!r}")
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
            raise ValueError(f"decay is what an older step counts for each newer one, in (0, 1], got {decay!r}")
        self._ridge, self._decay = ridge, decay
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._product = torch.zeros(size, dtype=torch.float64)
        self._weight = torch.zeros((), dtype=torch.float64)

    @property
    def observations(self) -> float:
        """The number of observations, with older ones counting less under decay."""
        return float(self._weight)

    def observe(self, x: Float[Tensor, "observation feature"], y: Float[Tensor, " observation"]) -> None:
        """Add data."""
        x, y = x.double().cpu(), y.double().cpu()
        count = torch.tensor(float(len(y)), dtype=torch.float64)
        self._gram = self._decay * self._gram + x.T @ x
        self._product = self._decay * self._product + x.T @ y
        self._weight = self._decay * self._weight + count

    def weights(self) -> Float[Tensor, " feature"]:
        """w; 0 for a feature that has been 0 so far."""
        size = self._gram.diagonal().sqrt()
        scale = torch.where(size > 0, 1 / size, 0)
        system = scale[:, None] * self._gram * scale
        system = system + self._ridge * torch.eye(len(scale), dtype=torch.float64)
        scaled: Tensor = torch.linalg.solve(system, scale * self._product)
        return scale * scaled

    def state(self) -> Mapping[str, Tensor]:
        """The sums so far."""
        return {"gram": self._gram.clone(), "product": self._product.clone(), "weight": self._weight.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave.

        Raises:
            ValueError: sums of another number of features, or none at all.
        """
        if "gram" in state and state["gram"].shape != self._gram.shape:
            raise ValueError(
                f"the saved fit has {len(state['gram'])} features a state, this one {len(self._gram)}; load it into a "
                "method with the features it was made with"
            )
        require_same_tensors("the saved fit", state, self.state())
        self._gram, self._product = state["gram"].clone(), state["product"].clone()
        self._weight = state["weight"].clone()
