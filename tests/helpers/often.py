"""Which cases of a test run every time, and which with the slow tests only."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def fast(chosen: Iterable[Any], cases: Iterable[Any], shown: Callable[[Any], str] | None = None) -> list[Any]:
    """The ``cases`` of one parameter as pytest takes them; all but the ``chosen`` are slow. ``shown`` names a case."""
    kept = list(chosen)
    named = {True: {}, False: {"marks": pytest.mark.slow}}
    return [pytest.param(case, **named[(shown(case) if shown else case) in kept]) for case in cases]
