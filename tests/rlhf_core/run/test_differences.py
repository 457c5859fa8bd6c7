"""Differences of settings: every place by its dotted name, and what may change left out."""

from rlhf_core.files.differences import differences


def test_every_changed_setting_is_named():
    old, new = {"a": 1, "b": {"c": [1], "d": 2, "f": "x"}}, {"a": 1, "b": {"c": [2], "e": None, "f": "y"}}
    assert differences(old, new) == ["b.c was [1] and is [2]", "b.d was 2 and is None", "b.f was 'x' and is 'y'"]
    assert differences(old, new, free={"b.d", "b.f"}) == ["b.c was [1] and is [2]"]
    assert differences(old, new, free={"b"}) == []
    assert differences(old, old) == []
