"""Generated inputs: how many are tried, and what may happen to a bad one.

``DENSE_RLHF_EXAMPLES=10 pytest`` tries ten times as many; ``pytest --hypothesis-show-statistics`` says how many were.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from hypothesis import HealthCheck, settings

from rlhf_core import HealthError

TIMES = int(os.environ.get("DENSE_RLHF_EXAMPLES", "1"))
REFUSALS = (ValueError, TypeError, OSError, FloatingPointError, HealthError)


def tries(number: int) -> settings:
    """The same ``number`` of examples in every run, and nothing kept on disk."""
    return settings(
        max_examples=number * TIMES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextmanager
def as_users_meet_it() -> Iterator[None]:
    """Without the type checker that stands in front of everything in these tests, and with warnings that only warn."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def outcome(call: Callable[[], Any], *names: str) -> tuple[Any, str]:
    """What ``call`` returns, or None and how it was refused: with an error made for the purpose that names the thing at
    fault (one of ``names``). A KeyError from the depths, a bare Exception or an unnamed TypeError is a failure."""
    try:
        with as_users_meet_it():
            return call(), ""
    except REFUSALS as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f"{type(error).__name__} names none of {names}: {str(error)[:300]!r}") from error
        return None, f"refused: {error}"
    except Exception as error:
        raise AssertionError(f"not a refusal, but a crash: {type(error).__name__}: {str(error)[:300]!r}") from error


def refused(call: Callable[[], Any], *names: str) -> str:
    """The message with which ``call`` is refused; fails where it is accepted in silence, or see :func:`outcome`."""
    accepted, message = outcome(call, *names)
    assert message, f"accepted in silence: {str(accepted)[:300]}"
    return message
