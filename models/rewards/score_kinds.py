"""Compute the reward from a classifier's logits, and decide which number is the reward.

A reward must not be guessed, because a wrong sign trains the opposite of what was wanted. It is inferred only if a
folder leaves no choice; otherwise the user names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from models.rewards.score_names import ScoreKind
from rlhf_core.names import counted, nearest

Label = str | int
LABELS: Mapping[str, int] = {"single_logit": 1, "logit_difference": 2}
"""How many labels the kinds take that need no name of one; the others take two or more."""
SHOWN = 8
SEPARATE = ("regression", "multi_label_classification")
"""Problems whose labels are answers of their own, with nothing to hold one against."""


class RewardNotNamed(ValueError):
    """A classifier has several labels, and nothing says which is the reward.

    A caller whose users choose in another way than by ``score`` and ``label`` makes its own message of ``problem`` and
    ``labels``, the labels with their indices, in words."""

    def __init__(self, problem: str, labels: str, way_out: str) -> None:
        super().__init__(f"{problem}. {way_out}")
        self.problem, self.labels = problem, labels


def _log_odds(logits: Float[Tensor, "row label"], label: int) -> Float[Tensor, " row"]:
    others = [other for other in range(logits.shape[1]) if other != label]
    return logits[:, label] - logits[:, others].logsumexp(1)


FORMULAS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "single_logit": lambda logits, _: logits[:, 0],
    "logit_difference": lambda logits, _: logits[:, 1] - logits[:, 0],
    "log_odds": _log_odds,
    "label_logit": lambda logits, label: logits[:, label],
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How logits become a score: the kind of score, and its label (-1 for a kind without one)."""

    kind: ScoreKind
    label: int = -1

    def __str__(self) -> str:
        return self.kind if self.kind in LABELS else f"{self.kind} of label {self.label}"

    def of(self, logits: Float[Tensor, "row label"]) -> Float[Tensor, " row"]:
        """Raw scores, in float32 at least."""
        return FORMULAS[self.kind](logits.to(torch.promote_types(logits.dtype, torch.float32)), self.label)


def find_score(name: str, config: PreTrainedConfig, score: ScoreKind | None, label: Label | None) -> Score:
    """The score that ``score`` and ``label`` select for a classifier with this configuration, or the only possible one.

    Raises:
        RewardNotNamed: there are several, and nothing names one.
        ValueError: it cannot give the one that is named; ``name`` is the classifier's, for the message.
    """
    labels: Any = config.id2label
    names = [str(labels[index]) for index in sorted(labels)]
    separate = config.problem_type if config.problem_type in SEPARATE else ""
    if score is not None and score not in list(FORMULAS):
        raise ValueError(f"score must be one of {', '.join(FORMULAS)}, got {score!r}{nearest(score, FORMULAS)}")
    kind = score or _only_kind(name, names, separate, label)
    if LABELS.get(kind, max(len(names), 2)) != len(names):
        raise ValueError(
            f"{name} has {counted(len(names), 'label')}; score={kind!r} needs {LABELS.get(kind, 'two or more')}. "
            + _choices(names, separate)
        )
    if separate and kind in ("logit_difference", "log_odds"):
        raise ValueError(
            f"{name} was trained for {separate}: its {len(names)} labels are separate answers, whose difference is no "
            f"score. {_choices(names, separate)}, or train a head of one label, or of two that exclude each other"
        )
    if (label is None) != (kind in LABELS):
        wrong = "needs the label that it is of" if label is None else f"is of no single label, but label is {label!r}"
        raise ValueError(f"{name}: score={kind!r} {wrong}. {_choices(names, separate)}")
    return Score(kind=kind) if label is None else Score(kind=kind, label=label_index(name, names, label))


def _only_kind(name: str, names: Sequence[str], separate: str, label: Label | None) -> ScoreKind:
    if len(names) == 1:
        return "single_logit"
    if label is not None:
        return "label_logit" if separate else "log_odds"
    if not separate and [each.casefold() for each in names] == ["negative", "positive"]:
        return "logit_difference"
    problem = f"{name} has {len(names)} labels, and nothing says which is the reward"
    raise RewardNotNamed(problem, listed_labels(names), _choices(names, separate))


def _choices(names: Sequence[str], separate: str) -> str:
    """What the user can choose, given the number of labels; ends an error message."""
    if len(names) == 1:
        return "Use score='single_logit', without label"
    if separate:
        return f"Use score='label_logit' and label, one of {listed_labels(names)}"
    pair = "score='logit_difference' (label 1 minus label 0), or " if len(names) == 2 else ""
    return (
        f"Use {pair}label, one of {listed_labels(names)}, for score='log_odds' (against the rest, what label alone "
        "means) or score='label_logit' (its logit alone)"
    )


def label_index(name: str, names: Sequence[str], label: Label) -> int:
    """The label's place among ``names``; raises ValueError where there is none, or several; ``name`` is the
    classifier's, for the message."""
    if type(label) is int and 0 <= label < len(names):
        return label
    found = [index for index, each in enumerate(names) if each == label]
    if len(found) != 1:
        raise ValueError(
            f"{name} has {len(found) or 'no'} label {label!r}{nearest(label, names) or '.'} "
            f"It has {listed_labels(names)}"
        )
    return found[0]


def listed_labels(names: Sequence[str]) -> str:
    """The labels with their indices, in words."""
    shown = [f"{each!r} ({index})" for index, each in enumerate(names[:SHOWN])]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
