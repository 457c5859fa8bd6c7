"""Words in messages: a method's name, a number with its noun, and the known name nearest to one that is unknown."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

Settings = TypeVar("Settings")
NONE: Mapping[str, str] = MappingProxyType({})

OTHER_WORDS: Mapping[str, str] = {
    "lr": "'learning_rate'",
    "ppo_epochs": "'epochs'",
    "num_ppo_epochs": "'epochs'",
    "batch_size": "'rollout_batch_size'",
    "mini_batch_size": "'minibatch_size'",
    "num_generations": "'responses_per_prompt'",
    "max_new_tokens": "max_length=(n, n)",
    "response_length": "max_length=(n, n)",
    "cliprange": "'clip_range'",
    "cliprange_value": "'value_clip_range'",
    "vf_coef": "'value_coef'",
    "kl_penalty": "kl=KLConfig(kind=...), where TRL's 'kl' is 'k1'",
    "adap_kl_ctrl": "kl=KLConfig(adaptive=...)",
    "kl_coef": "kl=KLConfig(init_coef=...)",
    "init_kl_coef": "kl=KLConfig(init_coef=...)",
    "target": "kl=KLConfig(target=...)",
    "horizon": "kl=KLConfig(horizon=...)",
    "score_clip": "score=ScoreConfig(clip=...)",
    "use_score_scaling": "score=ScoreConfig(scaling='running_std')",
    "use_score_norm": "score=ScoreConfig(centring='running_mean')",
    "early_stopping": "'target_kl', which is off at None",
    "whiten_rewards": "nothing at all, as rewards are never whitened",
}
"""Names of ``PPOConfig`` settings in other libraries, such as the paper's TRL."""


def method_name(method: object) -> str:
    """What a message calls a method: as it names itself, which is as it is typed for those of ``redistributors``; the
    class alone where there is only Python's address of an object."""
    kind = type(method)
    unnamed = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    return kind.__name__ if unnamed else str(method)


def counted(count: int, what: str) -> str:
    """A number with its noun: "1 run", "2,000 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def nearest(name: object, known: Iterable[str], other_words: Mapping[str, str] = NONE) -> str:
    """``"; did you mean 'abc'?"``, the end of an error message: the known name with the most similar spelling, or our
    name for another library's (``other_words``). Empty if nothing is near."""
    if not isinstance(name, str):
        return ""
    if name in other_words:
        return f"; did you mean {other_words[name]}?"
    close = closest(name, known)
    return f"; did you mean {close!r}?" if close else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name with the most similar spelling, ignoring case and hyphens; None if nothing is near."""
    spelled = {_plain(each): each for each in known}
    close = get_close_matches(_plain(name), spelled, n=1)
    return spelled[close[0]] if close else None


def refuse_unknown(
    owner: str, given: Iterable[str], known: Iterable[str], other_words: Mapping[str, str] = NONE
) -> None:
    """Refuse settings that ``owner`` (in its caller's words, as ``"PPOConfig"``) does not take.

    Raises:
        TypeError: naming the first of them, the one that may have been meant, and all that there are.
    """
    names = tuple(known)
    for name in given:
        if name not in names:
            meant = nearest(name, names, other_words) or "."
            raise TypeError(f"{owner}: no setting {name!r}{meant} It takes {', '.join(names)}")


def naming_nearest(other_words: Mapping[str, str] = NONE) -> Callable[[type[Settings]], type[Settings]]:
    """Decorator of a dataclass of settings, which then refuses an unknown keyword as ``refuse_unknown`` does.

    ``__other_words__`` of the class has ``other_words``, for a command line to name the nearest flag.
    """

    def decorate(kind: Any) -> Any:  # a class whose __init__ is replaced, which no type says
        made = kind.__init__
        known = tuple(field.name for field in fields(kind) if field.init)

        @wraps(made)
        def init(self: object, *args: Any, **given: Any) -> None:
            refuse_unknown(kind.__name__, given, known, other_words)
            made(self, *args, **given)

        kind.__init__ = init
        kind.__other_words__ = other_words
        return kind

    return decorate


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
