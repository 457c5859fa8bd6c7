"""The interface of a judge of two responses, its possible answers, and functions as judges."""

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, final, runtime_checkable

from benchmarks.base.importing import imported
from benchmarks.base.json_files import fingerprint
from rlhf_core.pages.document import visible

Choice = Literal["first", "second", "tie"]
CHOICES: Mapping[str, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}
EXCERPT = 200
"""Characters of a text in a message."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a judge that scores responses one by one gave the two (any unit, higher is better); equal is a tie."""

    first: float
    second: float


Preference = float | Choice | Scores
"""What a judge may say: the probability that the response shown first is better, a choice, or two scores."""
Asked = Callable[[str, str, str], Preference]
"""A judge as a function of instruction, first and second response."""


@runtime_checkable
class Judge(Protocol):
    """Compares two responses to an instruction."""

    @property
    def order_sensitive(self) -> bool:
        """Whether which response is shown first may matter; then both orders are asked for."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What is recorded of it; verdicts are reused only where this is the same."""
        ...

    def prefer(self, instruction: str, first: str, second: str) -> Preference:
        """Which response is better; raises Unreadable where the judge gave no answer that means anything."""
        ...


class Unreadable(ValueError):
    """A judge's answer that is not one of the allowed ones."""


@final
@dataclass(frozen=True, kw_only=True)
class CallableJudge:
    """A function of (instruction, first response, second response), asked in both orders."""

    fn: Asked
    order_sensitive = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """``module:name`` and a hash of the source; None if Python has none, and a change cannot be seen."""
        named: Any = self.fn if inspect.isroutine(self.fn) else type(self.fn)
        identity = {"kind": "callable", "name": f"{named.__module__}:{named.__qualname__}", "source": None}
        with contextlib.suppress(OSError, TypeError):  # built in, or typed into an interpreter
            identity["source"] = fingerprint([inspect.getsource(named)])
        return identity

    def prefer(self, instruction: str, first: str, second: str) -> Preference:
        """What the function says."""
        return self.fn(instruction, first, second)


def probability(preference: object) -> float:
    """What a judge said as the probability that the response shown first is better; equal scores are 0.5.

    Raises:
        ValueError: a number outside [0, 1], scores that are not finite, or an unknown word.
    """
    value = preference
    if isinstance(preference, Scores):
        difference = preference.first - preference.second
        value = 0.5 + 0.5 * ((difference > 0) - (difference < 0)) if math.isfinite(difference) else difference
    elif isinstance(preference, str):
        value = CHOICES.get(preference)
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"a judge said {preference!r}; expected a probability, Scores or one of {list(CHOICES)}")
    return float(value)


def as_judge(judge: Judge | Asked | str) -> Judge:
    """A judge as it is; a function of (instruction, first, second), or "module:function", wrapped.

    Raises:
        TypeError: anything else.
        ValueError: a name that cannot be imported.
    """
    found = imported(judge) if isinstance(judge, str) and ":" in judge else judge
    if isinstance(found, Judge):
        return found
    if callable(found):
        return CallableJudge(fn=found)
    raise TypeError(f"a judge has prefer, order_sensitive and identity, or is a function; got {found!r}")


def excerpt(text: str) -> str:
    """The beginning of a text by others, with nothing in it that could control a terminal."""
    return visible(text[:EXCERPT]) + (" …" if len(text) > EXCERPT else "")
