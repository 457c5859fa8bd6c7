"""``check`` finds every way of breaking the contract, by name, and nothing where it is kept."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fakes import ragged_sequences, rollout_of

from redistributors import PotentialProjection, RewardAttention, Uniform, check, evidence_of, signed
from redistributors.contract import ContractReport
from redistributors.trial_rollouts import made_up_rollout, part_of, with_other_ends
from rlhf_core.evidence import AuxiliaryLogprobs, EvidenceRequest, HiddenTap, PrefixScores
from rlhf_core.masking import last_token
from rlhf_core.probe import Experiment

ALL = ["members", "answer", "finite", "padding", "gradient", "rows", "one token", "repeats", "sum", "causal", "shaping"]


@dataclass(frozen=True)
class Method:
    """``make(rollout)``, and whatever is declared of it."""

    make: object
    causal: bool = False
    conserving: bool = False
    shaping: bool = False
    needs: frozenset[EvidenceRequest] = frozenset()

    def __call__(self, rollout):
        return self.make(rollout)


def even(rollout):
    mask = rollout.sequences.response_mask
    return (mask * (rollout.scores / mask.sum(1))[:, None]).detach()


def at_the_end(rollout):
    return (last_token(rollout.sequences.response_mask) * rollout.scores[:, None]).detach()


def with_the_next(figure):
    """Knows what the rollout says of each token and the one after."""
    return lambda rollout: torch.nn.functional.pad(getattr(rollout, figure)[:, 1:], (0, 1)).detach()


def alone_wrong(rollout):
    return even(rollout) / (rollout.logprobs.shape[1] - 1)


def random(rollout):
    return rollout.sequences.response_mask * torch.rand(1)


def overwriting(rollout):
    found = even(rollout)
    rollout.values.detach().zero_()
    return found


class Observes(Method):
    def observe(self, rollout):
        pass


class Claims:
    """Says more of itself than holds."""

    needs, causal, conserving, shaping = RewardAttention().needs, True, True, True

    def __call__(self, rollout):
        return RewardAttention()(rollout)


BROKEN = {
    "members": [Uniform, even, Method(even, needs=[]), Method(even, causal=0), Observes(even)],
    "answer": [
        Method(lambda rollout: even(rollout)[:, :-1]),
        Method(lambda rollout: even(rollout).tolist()),
        Method(lambda rollout: even(rollout).bfloat16()),
        Method(lambda rollout: rollout.sequences.response_ids),
        Method(lambda rollout: 1 / 0),
    ],
    "finite": [Method(lambda rollout: even(rollout) / 0), Method(lambda rollout: 1e13 * even(rollout))],
    "padding": [Method(lambda rollout: even(rollout).cumsum(1)), Method(lambda rollout: even(rollout) + 1)],
    "gradient": [
        Method(lambda rollout: even(rollout) * torch.ones((), requires_grad=True)),
        Method(lambda rollout: rollout.values),
    ],
    "rows": [
        Method(lambda rollout: even(replace(rollout, scores=rollout.scores - rollout.scores.mean()))),
        Method(lambda rollout: rollout.sequences.response_mask / rollout.logprobs.shape[1]),
    ],
    "one token": [Method(alone_wrong)],
    "repeats": [Method(random), Method(overwriting)],
    "sum": [
        Method(lambda rollout: 1.001 * even(rollout), conserving=True),
        Method(lambda rollout: even(replace(rollout, scores=rollout.raw_scores)), conserving=True),
    ],
    "causal": [Method(even, causal=True), Method(with_the_next("logprobs"), causal=True), Claims()],
    "shaping": [
        Method(even, shaping=True),
        Method(lambda rollout: rollout.logprobs.detach() + at_the_end(rollout), causal=True, shaping=True),
        Method(lambda rollout: 2 * at_the_end(rollout), causal=True, shaping=True),
        Claims(),
    ],
}


@pytest.mark.parametrize(("test", "method"), [(test, method) for test, methods in BROKEN.items() for method in methods])
def test_a_broken_method_fails_by_name(test, method, capsys):
    report = check(method)
    assert test in report.failed, report
    assert not report.passed
    assert f"{test:<12}fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    "method",
    [
        Method(even, conserving=True),
        Method(at_the_end, conserving=True, causal=True, shaping=True),
        Method(lambda rollout: rollout.logprobs.detach(), causal=True),
        Method(with_the_next("values"), causal=True),
        Method(lambda rollout: torch.from_numpy(rollout.values.numpy())),
    ],
    ids=["even", "at the end", "causal", "values", "numpy"],
)
def test_a_sound_method_passes(method):
    report = check(method)
    assert report.passed, report
    assert [one.name for one in report.tests] == ALL


def test_the_report_is_a_table_that_is_printed_and_returned(capsys):
    report = check(Uniform())
    lines = capsys.readouterr().out.splitlines()
    assert isinstance(report, ContractReport)
    assert repr(report).splitlines() == lines
    assert lines[0] == "uniform keeps the contract"
    assert [line[:12].strip() for line in lines[1:]] == ALL
    assert [line[12:26].strip() for line in lines[1:]] == ["pass"] * 9 + ["not declared"] * 2
    assert repr(check(Uniform)).splitlines() == [
        "Uniform fails members",
        f"{'members':<12}{'fail':<14}it is a class; give an instance, Uniform()",
    ]


def test_the_page_of_methods_shows_the_table_as_it_is():
    page = (Path(__file__).resolve().parents[2] / "docs/methods.md").read_text(encoding="utf-8")
    assert f"```\n{check(Uniform())!r}\n```" in page


@dataclass(frozen=True, kw_only=True)
class Share(Experiment):
    """A share in [0, 1], of each token, which made-up numbers are not."""

    source: str = "reward"


@dataclass(frozen=True)
class Shares:
    needs: ClassVar = frozenset({Share()})
    causal: ClassVar = False
    conserving: ClassVar = True

    def __call__(self, rollout):
        shares = evidence_of(rollout, Share(), "Shares")
        if not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError("no share")
        return signed(shares, rollout, residual="last")


def test_evidence_of_its_own_kind_may_be_given(capsys):
    assert check(Shares()).failed == ("answer",)
    assert "ValueError: no share (test_contract.py, line 172); the evidence was made up" in capsys.readouterr().out
    given = made_up_rollout(frozenset())
    mask = given.sequences.response_mask
    report = check(Shares(), replace(given, evidence={Share(): mask * 0.5}))
    assert report.passed, report
    assert "needs Share" in check(Shares(), given).tests[1].seen


class Sees(Method):
    """Reads evidence that it does not ask for."""

    def __call__(self, rollout):
        return evidence_of(rollout, PrefixScores(), "Sees").detach()


def test_a_method_sees_what_it_asks_for_in_a_rollout_of_the_callers_own():
    given = made_up_rollout({PrefixScores()})
    assert check(Sees(even), given).failed == ("answer",)
    assert check(Sees(even, needs=frozenset({PrefixScores()})), given).passed


def test_what_a_rollout_cannot_tell_is_not_tested():
    given = rollout_of(ragged_sequences(lengths=(2, 2), prompt_lengths=(1, 1)), [1.0, 2.0])
    report = check(Method(at_the_end, causal=True, shaping=True), given)
    untested = {one.name for one in report.tests if one.result == "not tested"}
    assert untested == {"padding", "one token", "causal", "shaping"}


@dataclass(frozen=True)
class Forgets(Uniform):
    """Learns, and gives its state to nobody."""

    seen: list = field(default_factory=list)

    def __call__(self, rollout):
        return Uniform.__call__(self, rollout) * (1 + len(self.seen))

    def observe(self, rollout):
        self.seen.append(rollout)

    def state(self):
        return {}

    def load_state(self, state):
        pass


def test_a_method_that_learns_is_tried_after_it_has_and_stays_as_it_was():
    method = Forgets()
    assert check(method).failed == ("learning", "one token", "sum")
    assert not method.seen
    learner = PotentialProjection()
    before = {name: x.clone() for name, x in learner.state().items()}
    assert check(learner).passed
    assert all(torch.equal(before[name], x) for name, x in learner.state().items())


@dataclass(frozen=True)
class Says(Uniform):
    said: float = float("nan")

    def metrics(self, rollout):
        return {"said": self.said}


def test_figures_of_its_own_are_finite():
    assert check(Says()).failed == ("metrics",)
    assert check(Says(said=1.0)).passed


def test_only_what_may_be_known_stays_when_a_response_goes_on_otherwise():
    needs = {PrefixScores(), AuxiliaryLogprobs(name="a"), *RewardAttention().needs}
    before = part_of(made_up_rollout(needs), [0, 2, 3], 7)
    after = with_other_ends(before, 2)
    same = {
        name: [bool(same) for same in (getattr(before, name) == getattr(after, name)).all(0)].index(False)
        for name in ("logprobs", "ref_logprobs", "kl", "values")
    }
    assert same == {"logprobs": 2, "ref_logprobs": 2, "kl": 2, "values": 3}
    ids = before.sequences.response_ids
    assert after.sequences.response_ids[:, :2].equal(ids[:, :2])
    assert after.sequences.response_ids[1, 2:].equal(ids[0, 2:])
    for request, x in before.evidence.items():
        known = 3 if isinstance(request, HiddenTap) else 2 if isinstance(request, AuxiliaryLogprobs) else 0
        assert after.evidence[request][:, :known].equal(x[:, :known])
        assert (after.evidence[request][:, known:] != x[:, known:]).all()
