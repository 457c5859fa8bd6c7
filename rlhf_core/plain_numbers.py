"""Turn the metrics of redistributors and instruments into plain numbers; they enter the log only through here."""

import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from reprlib import repr as shortened
from typing import Any, SupportsFloat

OF_THE_ENGINE = frozenset(
    {
        *("step", "kl_coef", "score", "score_std", "kl", "kl_penalty", "length", "length_q10", "length_q50"),
        *("length_q90", "finished", "conservation_error", "credit_concentration", "return_mean", "return_variance"),
        *("advantage_variance", "explained_variance", "return_variance_within_position"),
        *("explained_variance_over_position", "policy_loss", "value_loss", "value_loss_normalised", "value_loss_paper"),
        *("entropy", "clip_fraction", "value_clip_fraction", "approx_kl", "logprob_drop", "gradient_norm"),
        *("first_log_ratio_max", "first_log_ratio_mean", "ratio_max", "skipped_minibatches", "refused_minibatches"),
        *("stopped_early", "skipped_rollout", "skipped_observation", "learning_rate", "seconds", "tokens_per_second"),
        *("eval_score", "eval_kl", "eval_length", "critic_gradient_norm", "critic_warmup_steps"),
        "explained_variance_within_position",
    }
)
"""Names that a step, or the row it is logged in, gives a meaning of its own."""
ARRAYS = (("numpy", "generic"), ("numpy", "ndarray"), ("torch", "Tensor"))


def further_figures(found: object, who: object, taken: Mapping[str, float]) -> dict[str, float]:
    """What ``who`` returned, as plain floats: numbers of numpy, torch and the standard library, truth values too.

    NaN and infinity stay: they are logged by name, and no decision depends on them.

    Raises:
        ValueError: no mapping of names to numbers, or a name that is the engine's or ``taken``; names who, key, value.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{who!r} must return a mapping of names to numbers, got {shortened(found)}")
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"{who!r} returned a figure named {name!r}; a name must be a text")
        if name in OF_THE_ENGINE or name in taken:
            raise ValueError(
                f"{who!r} returned a figure {name!r}, but there is one of that name already, which it would replace; "
                "give it another name"
            )
    return {name: _number(value, f"{who!r} returned for {name!r}") for name, value in found.items()}


def _number(value: object, said: str) -> float:
    try:
        plain = as_plain(value)
        if isinstance(plain, SupportsFloat) and not hasattr(plain, "shape"):
            return float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{said} {shortened(value)}, which no float can hold: {error}") from error
    raise ValueError(f"{said} {shortened(value)}, a {type(value).__name__}; a figure must be one real number")


def as_plain(value: object) -> object:
    """A single number of numpy or torch as Python's own; anything else as it is."""
    imported = ((sys.modules.get(module), kind) for module, kind in ARRAYS)  # a value of a kind brings its module
    kinds = tuple(getattr(module, kind) for module, kind in imported if hasattr(module, kind))
    return value.item() if isinstance(value, kinds) and value.ndim == 0 else value


def make_plain(settings: Any) -> None:
    """Turn the numbers of numpy and torch among the fields of a dataclass, under construction, into Python's own."""
    for field in fields(settings):
        given = getattr(settings, field.name)
        parts = given if type(given) is tuple else (given,)
        plain = tuple(as_plain(part) for part in parts)
        if any(one is not part for one, part in zip(plain, parts, strict=True)):
            object.__setattr__(settings, field.name, plain if parts is given else plain[0])


def shown(value: float) -> float | str:
    """A number as JSON can hold it: NaN and infinity by name."""
    return value if math.isfinite(value) else str(value)
