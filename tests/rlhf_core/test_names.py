"""Unknown names: the message says which known one was meant."""

import inspect
from dataclasses import dataclass, replace

import pytest

from rlhf_core.names import counted, naming_nearest, nearest, refuse_unknown


@naming_nearest({"r": "rank"})
@dataclass(frozen=True)
class Settings:
    """Some settings."""

    rank: int = 1
    alpha: int = 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("abcc", "'abc'"),
        ("ABC-D", "'abc-d'"),
        ("abc_d", "'abc-d'"),
        ("unifrom", "'uniform'"),
        ("mean", "'uniform' here"),
    ],
)
def test_the_nearest_name(name, meant):
    assert nearest(name, ("abc", "abc-d", "uniform"), {"mean": "'uniform' here"}) == f"; did you mean {meant}?"


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 held-out prompts"), (1, "1 held-out prompt"), (2000, "2,000 held-out prompts")]
)
def test_a_number_has_its_noun(count, said):
    assert counted(count, "held-out prompt") == said


@pytest.mark.parametrize("name", ["zzz", "", 7, None])
def test_nothing_is_near(name):
    assert nearest(name, ("abc", "abc-d")) == ""


def test_all_known_names_are_listed():
    with pytest.raises(TypeError, match=r"^Settings: no setting 'zzz'\. It takes rank, alpha$"):
        refuse_unknown("Settings", ["rank", "zzz"], ["rank", "alpha"])
    refuse_unknown("Settings", ["rank"], iter(["rank", "alpha"]))


@pytest.mark.parametrize(("name", "meant"), [("r", "rank"), ("alhpa", "'alpha'")])
def test_a_dataclass_names_the_nearest_setting(name, meant):
    expected = f"^Settings: no setting '{name}'; did you mean {meant}\\? It takes rank, alpha$"
    with pytest.raises(TypeError, match=expected):
        Settings(**{name: 3})
    with pytest.raises(TypeError, match=expected):
        replace(Settings(), **{name: 3})


def test_it_is_the_dataclass_that_it_was():
    assert Settings(3, alpha=4) == Settings(rank=3, alpha=4) == replace(Settings(rank=3), alpha=4)
    assert list(inspect.signature(Settings).parameters) == ["rank", "alpha"]
    with pytest.raises(TypeError, match="multiple values"):
        Settings(3, rank=4)
