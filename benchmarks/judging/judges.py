"""Judges of pairs of responses: the Protocol, and a function or a reward model as one. Another is a chat endpoint."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal, Protocol, final, runtime_checkable

from benchmarks.base.importing import imported
from benchmarks.base.json_files import fingerprint
from benchmarks.judging.win_rates import Preference, Scores
from benchmarks.reporting.heat_map import visible
from models.rewards.classifier_reward import ClassifierReward
from models.texts.prompt_encoding import encode

Asked = Callable[[str, str, str], Preference]
EXCERPT = 200
"""Characters of a text in a message."""


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
    """A judge's answer that is none of those it was asked for."""


@final
@dataclass(frozen=True, kw_only=True)
class CallableJudge:
    """A function of (instruction, first response, second response), asked in both orders."""

    fn: Asked
    order_sensitive = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """``module:name`` and a hash of the source; None where Python has none, and a change cannot be seen."""
        named: Any = self.fn if inspect.isroutine(self.fn) else type(self.fn)
        identity = {"kind": "callable", "name": f"{named.__module__}:{named.__qualname__}", "source": None}
        with contextlib.suppress(OSError, TypeError):  # built in, or typed into an interpreter
            identity["source"] = fingerprint([inspect.getsource(named)])
        return identity

    def prefer(self, instruction: str, first: str, second: str) -> Preference:
        """What the function says."""
        return self.fn(instruction, first, second)


@final
@dataclass(frozen=True, kw_only=True)
class RewardJudge:
    """A reward model that scores each response by itself, in its own prompt template.

    ``source`` and ``weights`` (a fingerprint) name the model in the record. ``end`` is what follows the filled
    template: the tokenizer's EOS, as after every text that this project's reward models learn from, or nothing. Judges
    see texts, so a response that was cut at its maximum gets the EOS as well.

    Raises:
        ValueError: a template with other fields than {instruction} and {response}, or no EOS to append.
    """

    model: ClassifierReward
    source: str
    weights: str
    template: str = "{instruction}{response}"
    end: Literal["eos", "nothing"] = "eos"
    order_sensitive = False

    def __post_init__(self) -> None:
        require_fields("reward_template", self.template, ("instruction", "response"))
        if self.end == "eos" and self.model.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {self.source} has no EOS token; pass --reward_end nothing")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Where it is from, its weights, and how they are read."""
        return {
            "kind": "reward model",
            "name": self.source,
            "weights": self.weights,
            "score": self.model.identity["score"],
            "template": self.template,
            "end": self.end,
        }

    def prefer(self, instruction: str, first: str, second: str) -> Scores:
        """Both scores; raises ValueError where a text exceeds the model's context."""
        rows = [self._ids(instruction, response) for response in (first, second)]
        try:
            scores = self.model.score_ids(rows).tolist()
        except ValueError as error:
            told = f"{self.source} cannot score two responses to {excerpt(instruction)!r}"
            raise ValueError(f"{told}: {error}. Leave the prompt out, or lower --max_tokens") from error
        return Scores(first=scores[0], second=scores[1])

    def _ids(self, instruction: str, response: str) -> list[int]:
        text = self.template.format(instruction=instruction, response=response)
        ids = encode(self.model.tokenizer, [text])[0]
        eos = self.model.tokenizer.eos_token_id
        return [*ids, eos] if self.end == "eos" and ids[-1:] != [eos] else ids


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


def require_fields(name: str, template: str, fields: Collection[str]) -> None:
    """Raise ValueError unless the format string ``template`` has exactly these fields, plain."""
    try:
        found = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{name} {template!r} is no format string: {error}") from error
    if {field for field, *_ in found} != set(fields) or any(spec or conversion for _, spec, conversion in found):
        wanted = ", ".join(f"{{{field}}}" for field in fields)
        raise ValueError(f"{name} must hold {wanted} and no other field (braces are doubled), got {template!r}")


def excerpt(text: str) -> str:
    """The beginning of a text by others, with nothing in it that could control a terminal."""
    return visible(text[:EXCERPT]) + (" …" if len(text) > EXCERPT else "")
