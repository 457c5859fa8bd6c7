"""Warnings that point at the caller's own line, not at one of ours."""

import inspect
import warnings

INSIDE = frozenset(
    {"rlhf_core", "redistributors", "models", "benchmarks", "torch", "contextlib", "jaxtyping", "beartype"}
)
"""Packages that a warning does not point at: this project's, and what wraps its functions."""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the place from which this project was called: the first frame outside ``INSIDE``."""
    own = inspect.currentframe()
    frame, level = own.f_back if own else None, 2
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
