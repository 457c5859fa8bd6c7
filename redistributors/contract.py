"""The contract of a redistributor as a public function: run on any object the tests that the registry's methods
pass."""

import copy
import math
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from redistributors.parts.credit import restricted
from redistributors.trial_rollouts import TOKENS, known_ahead, made_up_rollout, part_of, with_other_ends
from rlhf_core import checks
from rlhf_core.checks import usable
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.names import method_name
from rlhf_core.types import Learns, Redistributor, ReportsMetrics, Rollout

TOLERANCE = 1e-5
"""Largest difference that rounding explains, relative to the size of what is compared, and to 1 where that is less."""
FIGURES = (*TOKENS, "scores", "raw_scores")
MADE_UP = (
    "; the evidence was made up (weights in [0, 1) for attention, numbers in [-2, 2) for the rest): where the method "
    "reads other numbers, give a rollout that holds its own, check(method, trainer.collect(prompts, methods=[method]))"
)


@dataclass(frozen=True, kw_only=True)
class ContractTest:
    """One test of a method: its ``name``, whether it ``held`` (None: this rollout cannot tell), what was ``seen``, and
    whether the method ``declared`` it. All tests but "sum", "causal" and "shaping" apply to every redistributor."""

    name: str
    held: bool | None
    seen: str
    declared: bool = True

    @property
    def result(self) -> Literal["pass", "fail", "not declared", "not tested"]:
        """In a word."""
        if not self.declared:
            return "not declared"
        return "not tested" if self.held is None else "pass" if self.held else "fail"


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """The result of :func:`check` for a ``method``: its ``tests``, in order. Printed, it is a table."""

    method: str
    tests: tuple[ContractTest, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The tests that failed, by name."""
        return tuple(test.name for test in self.tests if test.result == "fail")

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return not self.failed

    def __repr__(self) -> str:
        verdict = f"fails {', '.join(self.failed)}" if self.failed else "keeps the contract"
        rows = [f"{test.name:<12}{test.result:<14}{test.seen}" for test in self.tests]
        return "\n".join([f"{self.method} {verdict}", *rows])


def check(method: object, rollout: Rollout | None = None) -> ContractReport:
    """Test the redistributor ``method`` on a small rollout, print a table of results, and return it; the method is not
    changed.

    ``members``: it has ``needs``, ``causal`` and ``conserving``, and is called with a rollout. ``answer``: a tensor
    (batch, response), in the scores' precision at least. ``finite``, ``padding`` (0 there), ``gradient`` (none).
    ``rows``: none depends on another, nor on its padding. ``one token``: a response of a single token, alone.
    ``repeats``: the same again, and the rollout is left as it was. Where declared, ``sum``: rows add up to the scores;
    ``causal``: no token's score changes with what comes after it; ``shaping``: what is added to the score at the end is
    γ Φ(s_{t+1}) − Φ(s_t). Where it has them, ``metrics``: finite numbers by name; ``learning``: what ``state`` gives,
    ``load_state`` takes. A method that learns is tried after it has observed the rollout.

    Evidence is made up, or that of a ``rollout`` of your own. ``causal`` takes evidence to know the whole response,
    unless it is a ``HiddenTap`` or another kind that is of the state before a token or of the token alone.

    A broken method raises no error here; use ``assert check(method).passed`` in a test.
    """
    report = contract_report(method, rollout)
    print(report)
    return report


def contract_report(method: object, rollout: Rollout | None = None) -> ContractReport:
    """What :func:`check` finds, and nothing printed."""
    return ContractReport(method=_name(method), tests=tuple(_tests(method, rollout)))


def _tests(method: object, given: Rollout | None) -> list[ContractTest]:
    """All of them; none beyond the first two tests where one of these fails."""
    wrong = _lacking(method)
    if wrong or not isinstance(method, Redistributor):
        return [ContractTest(name="members", held=False, seen=wrong)]
    rollout = made_up_rollout(method.needs) if given is None else restricted(given, method)
    members = ContractTest(name="members", held=True, seen=f"needs {_kinds(method.needs)}")
    answer = _tried("answer", _answer, _Trial(fresh=method, method=method, rollout=rollout))
    if not answer.held:
        return [members, replace(answer, seen=answer.seen + (MADE_UP if given is None and method.needs else ""))]
    learns = isinstance(method, Learns)
    trial = _Trial(fresh=method, method=copy.deepcopy(method) if learns else method, rollout=rollout)
    found = [_tried("learning", _learning, trial)] if learns else []
    found += [_tried(test, function, trial) for test, function in ALWAYS.items()]
    found += [_tried("metrics", _metrics, trial)] if isinstance(method, ReportsMetrics) else []
    claims = {"sum": method.conserving, "causal": method.causal, "shaping": getattr(method, "shaping", False)}
    found += [replace(_tried(test, CLAIMS[test], trial), declared=said) for test, said in claims.items()]
    return [members, answer, *found]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Trial:
    fresh: Redistributor
    """As given."""
    method: Redistributor
    """Where it learns, a copy that has observed the rollout; else the same."""
    rollout: Rollout

    def called(self) -> Tensor:
        return self.method(self.rollout)


_Answer = tuple[bool | None, str]
_Test = Callable[[_Trial], _Answer]


def _tried(name: str, function: _Test, trial: _Trial) -> ContractTest:
    """On a rollout of its own, as a method may overwrite it."""
    try:
        held, seen = function(replace(trial, rollout=copy.deepcopy(trial.rollout)))
    except Exception as error:  # a user's method may raise anything
        held, seen = False, f"{type(error).__name__}: {' '.join(str(error).split())}{_place(error)}"
    return ContractTest(name=name, held=held, seen=seen)


def _place(error: Exception) -> str:
    """The place where it was raised, as " (file.py, line 3)", in the user's own code."""
    calls = traceback.extract_tb(error.__traceback__)
    ours = [Path(__file__).parent, Path(torch.__file__).parent, Path(checks.__file__).parent]
    theirs = [call for call in calls if not any(map(Path(call.filename).is_relative_to, ours))]
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""


def _kinds(requests: Iterable[EvidenceRequest]) -> str:
    return ", ".join(sorted({type(request).__name__ for request in requests})) or "no evidence"


def _name(method: object) -> str:
    return method.__name__ if isinstance(method, type) else method_name(method)


def _lacking(method: object) -> str:
    """Why it is not a redistributor; empty if it is one."""
    if isinstance(method, type):
        return f"it is a class; give an instance, {method.__name__}()"
    if not isinstance(method, Redistributor):
        members = ("needs", "causal", "conserving", "__call__")
        return f"it has no {', no '.join(name for name in members if not hasattr(method, name))}"
    if not isinstance(method.needs, frozenset) or not all(isinstance(one, EvidenceRequest) for one in method.needs):
        return f"needs must be a frozenset of EvidenceRequest, got {method.needs!r}"
    unclear = [name for name in ("causal", "conserving") if not isinstance(getattr(method, name), bool)]
    if unclear:
        return f"{unclear[0]} must be True or False, got {getattr(method, unclear[0])!r}"
    half = hasattr(method, "observe") and not isinstance(method, Learns)
    return "it has observe, and so must have state and load_state, for checkpoints" if half else ""


def _answer(trial: _Trial) -> _Answer:
    found, scores = trial.called(), trial.rollout.scores
    if not isinstance(found, Tensor):
        return False, f"a {type(found).__name__}, not a tensor"
    shape = trial.rollout.sequences.response_mask.shape
    fits = found.shape == shape and torch.promote_types(found.dtype, scores.dtype) == found.dtype
    wanted = "" if fits else f", not {scores.dtype} (or wider) of shape {tuple(shape)}"
    return fits, f"{found.dtype} of shape {tuple(found.shape)}{wanted}"


def _learning(trial: _Trial) -> _Answer:
    """Its method has observed nothing before, and has afterwards."""
    learner, again = trial.method, copy.deepcopy(trial.fresh)
    assert isinstance(learner, Learns)
    assert isinstance(again, Learns)
    learner.observe(trial.rollout)
    again.load_state(learner.state())
    same = torch.equal(trial.called(), again(trial.rollout))
    return same, f"after load_state the method is {'the same' if same else 'another'}"


def _metrics(trial: _Trial) -> _Answer:
    assert isinstance(trial.method, ReportsMetrics)
    figures = trial.method.metrics(trial.rollout)
    wrong = {name: value for name, value in figures.items() if not (isinstance(name, str) and math.isfinite(value))}
    return not wrong, f"not finite: {wrong}" if wrong else ", ".join(figures) or "none here"


def _finite(trial: _Trial) -> _Answer:
    found = trial.called()
    return bool(usable(found).all()), f"largest size {float(found.detach().abs().max()):.3g}"


def _padding(trial: _Trial) -> _Answer:
    outside = ~trial.rollout.sequences.response_mask
    if not bool(outside.any()):
        return None, "this rollout has no padding"
    wrong = (trial.called() != 0) & outside
    return not bool(wrong.any()), f"{int(wrong.sum())} of {int(outside.sum())} places are not 0"


def _gradient(trial: _Trial) -> _Answer:
    rollout = trial.rollout
    figures: dict[str, Any] = {name: _leaf(getattr(rollout, name)) for name in FIGURES}
    evidence = {request: _leaf(x) for request, x in rollout.evidence.items()}
    attached = trial.called().requires_grad
    with suppress(RuntimeError):  # what numpy says to a gradient; no trainer's rollout has one
        attached |= trial.method(replace(rollout, evidence=evidence, **figures)).requires_grad
    return not attached, "token scores carry a gradient; detach them" if attached else "none"


def _leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_(values.is_floating_point())


def _rows(trial: _Trial) -> _Answer:
    together, lengths = trial.called(), trial.rollout.sequences.response_lengths.tolist()
    gaps = [
        _gap(trial.method(part_of(trial.rollout, [row], length))[0], together[row, :length])
        for row, length in enumerate(lengths)
    ]
    return max(gaps) <= TOLERANCE, f"alone and without padding a row differs by up to {max(gaps):.2g}"


def _one_token(trial: _Trial) -> _Answer:
    single = (trial.rollout.sequences.response_lengths == 1).nonzero().flatten().tolist()
    if not single:
        return None, "this rollout has no response of one token"
    alone = part_of(trial.rollout, single[:1], 1)
    found, score = trial.method(alone), float(alone.scores)
    right = found.shape == (1, 1) and bool(found.isfinite().all())
    right = right and (not trial.method.conserving or _gap(found[0], alone.scores) <= TOLERANCE)
    return right, f"a score of {score:.3g} becomes {found.tolist()}"


def _repeats(trial: _Trial) -> _Answer:
    rollout = copy.deepcopy(trial.rollout)
    same = torch.equal(trial.method(rollout), trial.method(rollout))
    altered = [name for name in FIGURES if not torch.equal(getattr(rollout, name), getattr(trial.rollout, name))]
    altered += [f"{one!r}" for one, x in rollout.evidence.items() if not torch.equal(x, trial.rollout.evidence[one])]
    said = "the same twice" if same else "something else the second time"
    return same and not altered, f"{said}; {f'overwrites {altered}' if altered else 'the rollout is as it was'}"


def _sum(trial: _Trial) -> _Answer:
    found, scores = trial.called(), trial.rollout.scores
    size = torch.maximum(scores.abs(), found.abs().sum(1)).clamp(min=1)  # that of what is rounded
    error = float(((found.sum(1) - scores).abs() / size).max())
    return error <= TOLERANCE, f"rows miss the score by up to {error:.2g}, relative"


def _causal(trial: _Trial) -> _Answer:
    before = _alike(trial.rollout)
    if before is None:
        return None, "takes two responses of 3 tokens or more"
    found = trial.method(before)
    others = [trial.method(with_other_ends(before, kept)) for kept in range(1, found.shape[1])]
    worst = max(_gap(other[:, :kept], found[:, :kept]) for kept, other in enumerate(others, start=1))
    whole = [request for request in trial.method.needs if known_ahead(request) is None]
    why = f" ({_kinds(whole)} may know the whole response)" if worst > TOLERANCE and whole else ""
    return worst <= TOLERANCE, f"later tokens change a token's score by up to {worst:.2g}{why}"


def _shaping(trial: _Trial) -> _Answer:
    """Where a method is causal, so is the potential, which is Σ_{k<t} γ^k c_k up to Φ(s_1); and that no token must
    change."""
    held, seen = _causal(trial)
    before = _alike(trial.rollout)
    if not held or before is None:
        return held, seen if held is None else "not causal"
    gamma = float(getattr(trial.method, "gamma", 1.0))
    starts = [_first_potential(trial.method(one), one.scores, gamma) for one in (before, with_other_ends(before, 0))]
    change = _gap(*starts)
    return (
        change <= TOLERANCE,
        f"another response moves the potential of the prompt by up to {change:.2g}",
    )


def _first_potential(found: Tensor, scores: Tensor, gamma: float) -> Tensor:
    """Φ(s_1) = γ^{T−1} score − Σ_t γ^t c_t, t from 0."""
    discounts = gamma ** torch.arange(found.shape[1], device=found.device)
    return discounts[-1] * scores - (found * discounts).sum(1)


def _alike(rollout: Rollout) -> Rollout | None:
    """The responses of 3 tokens or more, all cut to the length of the shortest; None if there is no pair of them."""
    lengths = rollout.sequences.response_lengths
    rows = (lengths >= 3).nonzero().flatten().tolist()
    return part_of(rollout, rows, int(lengths[rows].min())) if len(rows) > 1 else None


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest of ``other``, or to 1 where that is less."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


ALWAYS: Mapping[str, _Test] = {
    "finite": _finite,
    "padding": _padding,
    "gradient": _gradient,
    "rows": _rows,
    "one token": _one_token,
    "repeats": _repeats,
}
CLAIMS: Mapping[str, _Test] = {"sum": _sum, "causal": _causal, "shaping": _shaping}
