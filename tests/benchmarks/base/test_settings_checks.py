"""Checks that settings share: the errors name the setting, what it may be, and what it is."""

from types import SimpleNamespace

import pytest

from benchmarks.base.settings_checks import require_at_least, require_known

SETTINGS = SimpleNamespace(repeats=2, share=float("nan"), rows=(1, 3), none=(), cases=("paper", "long"))


def test_settings_that_can_be():
    require_at_least(SETTINGS, repeats=2, rows=1, none=1)
    require_known(SETTINGS, cases=("long", "paper", "tiny"))


@pytest.mark.parametrize(
    ("smallest", "words"),
    [
        ({"repeats": 3}, "^repeats must be 3 or more, got 2$"),
        ({"rows": 2}, "^rows must be 2 or more, got 1$"),
        ({"share": 0}, "^share must be 0 or more, got nan$"),
    ],
)
def test_settings_that_are_too_small(smallest, words):
    with pytest.raises(ValueError, match=words):
        require_at_least(SETTINGS, **smallest)


def test_names_that_nobody_knows_and_none_at_all():
    with pytest.raises(ValueError, match=r"^cases must be of 'paper', 'lone', got 'long'; did you mean 'lone'\?$"):
        require_known(SETTINGS, cases=("paper", "lone"))
    with pytest.raises(ValueError, match="^none must hold at least one of 'paper'$"):
        require_known(SETTINGS, none=("paper",))
