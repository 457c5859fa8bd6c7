"""Arms of methods from elsewhere, and of wrappers that hold another method."""

import pickle
import re
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from benchmarks.runs.arms import Arm, parse_arms
from redistributors import (
    REDISTRIBUTORS,
    Attention,
    DecoderAttention,
    EnsembleCredit,
    EntropyPeaks,
    RewardAttention,
    Segment,
    Sentences,
    Sparse,
    Uniform,
)
from redistributors.method_names import METHOD_NAMES
from rlhf_core.scorers.aggregation import WorstCase
from rlhf_core.types import Redistributor

HERE = __name__


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """Holds two methods, one named by its annotation, one known by its default only."""

    inner: Redistributor = field(default_factory=Sparse)
    other: object = Uniform()
    written: "Redistributor | None" = None
    n: int = 1
    needs: ClassVar = frozenset()
    causal: ClassVar = False
    conserving: ClassVar = True

    def __call__(self, rollout):
        return self.inner(rollout)


@dataclass(frozen=True, kw_only=True)
class NoMethod:
    """Has nothing a redistributor has."""


def only(text):
    (arm,) = parse_arms(text)
    return arm


def test_a_method_from_elsewhere_is_imported_by_its_dotted_name():
    arm = only("redistributors.uniform.Uniform(beta=0.5)@lam=1")
    assert arm.redistributor() == Uniform(beta=0.5)
    assert (arm.label, arm.changes) == ("redistributors.uniform.Uniform-beta0.5-lam1", {"lam": 1})
    assert pickle.loads(pickle.dumps(arm)).redistributor() == Uniform(beta=0.5)


def test_a_setting_that_is_a_redistributor_is_an_arm_of_its_own():
    arm = only(f"{HERE}.Wrapper(inner=abc-d(rows=last, shift=1), n=3)")
    assert arm.redistributor() == Wrapper(inner=DecoderAttention(rows="last", shift=1), n=3)
    assert arm.label == f"{HERE}.Wrapper-inner+abc-d-rowslast-shift1+-n3"
    assert only(f"{HERE}.Wrapper(other=sparse)").redistributor().other == Sparse()
    assert only(f"{HERE}.Wrapper(written=sparse)").redistributor().written == Sparse()
    deep = only(f"{HERE}.Wrapper(inner={HERE}.Wrapper(inner=uniform(beta=0.5)))@kl.init_coef=0.1")
    assert deep.redistributor().inner.inner == Uniform(beta=0.5)
    assert deep.changes == {"kl.init_coef": 0.1}
    assert re.fullmatch(r"[\w.+-]+", deep.label)


def test_a_setting_that_is_another_object_is_written_by_its_class():
    arm = only("segment(inner=abc, boundaries=Sentences())")
    assert arm.redistributor() == Segment(inner=RewardAttention(), boundaries=Sentences())
    assert arm.label == "segment-innerabc-boundariesSentences"
    peaks = only("segment(boundaries=EntropyPeaks(threshold=1.5),place=end)")
    assert peaks.redistributor() == Segment(boundaries=EntropyPeaks(threshold=1.5), place="end")
    assert peaks.label == "segment-boundaries+EntropyPeaks-threshold1.5+-placeend"
    assert pickle.loads(pickle.dumps(peaks)).redistributor() == peaks.redistributor()
    for name in ("WorstCase()", "WorstCase", "rlhf_core.scorers.aggregation.WorstCase()"):
        ensemble = only(f"redistributors.EnsembleCredit(aggregate={name})")
        assert ensemble.redistributor() == EnsembleCredit(aggregate=WorstCase())


def test_items_of_a_list_are_told_apart_in_the_label():
    assert [only(f"attention(layers={layers})").label for layers in ("[1, 2]", "12", "[12]", "[1, -2]")] == [
        "attention-layers1_2", "attention-layers12", "attention-layers12", "attention-layers1_-2"
    ]  # fmt: skip


def test_which_method_a_setting_belongs_to_shows_in_the_label():
    outer = only(f"{HERE}.Wrapper(inner={HERE}.Wrapper(inner=sparse), n=2)").label
    assert outer != only(f"{HERE}.Wrapper(inner={HERE}.Wrapper(inner=sparse, n=2))").label


def test_every_run_gets_its_own_inner_method():
    arm = only(f"{HERE}.Wrapper(inner=uniform)")
    assert arm.redistributor().inner is not arm.redistributor().inner


def test_commas_part_arms_and_settings_only_outside_brackets():
    arms = parse_arms(f"sparse@max_length=[3, 6], {HERE}.Wrapper(inner=abc-d(rows=last, shift=1), n=2),uniform")
    assert [arm.method for arm in arms] == ["sparse", f"{HERE}.Wrapper", "uniform"]
    assert arms[0].changes == {"max_length": [3, 6]}
    assert arms[1].redistributor() == Wrapper(inner=DecoderAttention(rows="last", shift=1), n=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "nowhere.at.all.Method",
            "'nowhere.at.all.Method': nowhere.at.all cannot be imported (ModuleNotFoundError",
        ),
        ("nowhere.Method", "start from the folder that holds it, or name that folder in PYTHONPATH"),
        ("redistributors.uniform.Nobody", "redistributors.uniform has no class Nobody"),
        ("redistributors.uniform.__doc__", "redistributors.uniform has no class __doc__"),
        (f"{HERE}.NoMethod", "NoMethod is not a redistributor's class and was not called: it declares no __call__"),
        (f"{HERE}.Wrapper(inner={HERE}.NoMethod)", "NoMethod is not a redistributor's class and was not called"),
        ("a" * 9 + "(b=" * 3000 + ")" * 3000, "no redistributor 'aaaaaaaaa'"),
        ("segment(inner=" * 400 + "sparse" + ")" * 400, "is nested too deep"),
        ("redistributors.uniform.Uniform(beta=2)", "beta is the share"),
        ("redistributors..Uniform", "cannot read the arm"),
        (".uniform.Uniform", "cannot read the arm"),
        (f"{HERE}.Wrapper(inner=magic)", "no redistributor 'magic'"),
        (f"{HERE}.Wrapper(inner=uniform(beta=2))", "beta is the share"),
        (f"{HERE}.Wrapper(inner=sparse@lam=1)", "cannot change PPO settings"),
        (f"{HERE}.Wrapper(inner=abc(beta=1)", "cannot read the arm"),
        (f"{HERE}.Wrapper(n=1)(n=2)", "cannot read the arm"),
        ("segment(boundaries=Chapters())", "no class 'Chapters' in redistributors or redistributors.segment; write"),
        ("segment(boundaries=5)", "no class '5'"),
        ("segment(boundaries=NGrams(n=0))", "NGrams: n is a number of tokens"),
        ("segment(boundaries=[NGrams])", "such as NGrams()"),
        ("segment(boundaries=nowhere.Chapters())", "nowhere cannot be imported"),
        ("uniform(beta=[1)", "cannot read the arm"),
        ("sparse@seed=1", "cannot set its own"),
    ],
)
def test_what_cannot_be_is_refused_in_words(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_arms([text])


CALLED = []


def factory(**settings):
    CALLED.append(settings)
    return Sparse()


class Caller:
    """What a stranger may name: it acts when it is called, and has one member too few."""

    needs: frozenset = frozenset()
    causal = True

    def __init__(self, **settings):
        CALLED.append(settings)

    def __call__(self, rollout):
        raise NotImplementedError


class Declares(Caller):
    """A redistributor's class that sets a member, which it declares, when it is made."""

    conserving: bool

    def __init__(self, n=1):
        self.conserving = n == 1


@dataclass(frozen=True)
class Plain:
    """Settings without a method: nothing but a subclass can be known to stand in for them."""

    n: int = 1


@dataclass(frozen=True)
class Deeper(Plain):
    """One of them."""


@dataclass(frozen=True, kw_only=True)
class Holder(Wrapper):
    """Has such settings."""

    plain: Plain = Plain()


@pytest.mark.parametrize(
    "text",
    [
        f"{HERE}.factory(x=1)",
        f"{HERE}.Caller(x=1)",
        f"{HERE}.Wrapper(inner={HERE}.Caller(x=1))",
        f"{HERE}.Wrapper(other={HERE}.factory(x=1))",
        f"{HERE}.Holder(plain={HERE}.Caller(x=1))",
        f"segment(boundaries={HERE}.Caller(x=1))",
        f"segment(boundaries={HERE}.factory(x=1))",
        f"redistributors.EnsembleCredit(aggregate={HERE}.Caller(x=1))",
        "builtins.eval(source=CALLED.append(1))",
        "subprocess.Popen(args=[touch, x])",
        "functools.partial(func=print)",
        "unittest.mock.MagicMock()",
    ],
)
def test_nothing_but_a_redistributors_class_or_a_part_of_one_is_called(text, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **settings: CALLED.append(settings))
    with pytest.raises(ValueError, match=r"was not called: it (declares no|is not a subclass)|has no class"):
        parse_arms([text])
    assert CALLED == []


def test_an_arm_made_by_hand_is_checked_as_one_that_was_read():
    with pytest.raises(ValueError, match="was not called"):
        Arm(label="x", method=f"{HERE}.Caller", settings={}, changes={}).redistributor()
    assert CALLED == []


def test_members_that_are_set_when_it_is_made_need_only_be_declared():
    assert only(f"{HERE}.Declares(n=2)").redistributor().conserving is False
    assert only(f"{HERE}.Holder(plain=Deeper(n=2))").redistributor().plain == Deeper(n=2)


def test_what_a_module_raises_while_it_is_imported_is_told(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("raise KeyError('table')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="half_written cannot be imported \\(KeyError: 'table'\\)"):
        parse_arms("half_written.Method")
    assert "half_written" not in sys.modules


def test_a_command_line_knows_the_names_of_the_registry_without_its_classes():
    assert tuple(REDISTRIBUTORS) == METHOD_NAMES


def test_a_misspelt_setting_names_the_nearest_and_all_there_are():
    with pytest.raises(ValueError, match=r"it has no setting 'bta'; did you mean 'beta'\?; its settings: beta"):
        parse_arms("uniform(bta=0.8)")


@pytest.mark.parametrize(
    "method",
    [
        *(make() for make in REDISTRIBUTORS.values()),
        DecoderAttention(rows="last", shift=1),
        Segment(inner=Uniform(beta=0.3), boundaries=Sentences(), place="end"),
        Attention(layers=(0, 1), heads=1),
    ],
    ids=str,
)
def test_what_a_method_is_called_is_what_is_typed_for_it(method):
    (arm,) = parse_arms([str(method)])
    assert arm.redistributor() == method


def test_an_error_of_a_method_names_it_once():
    with pytest.raises(ValueError, match=r"^arm 'abc\(beta=2\)': beta is the share of the score"):
        parse_arms("abc(beta=2)")
