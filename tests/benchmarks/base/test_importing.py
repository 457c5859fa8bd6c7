import importlib
import sys
from functools import partial

import pytest

from benchmarks.base.importing import imported, is_name
from benchmarks.base.own_code import code_fingerprint

FIRST = """
LIMIT = 3
def helper(text):
    "Length."
    return len(text)
def unrelated(text):
    return 1
class Scorer:
    def __call__(self, prompts, responses):
        return [helper(r) for r in responses]
def reward(prompts, responses):
    return [min(LIMIT, helper(r)) for r in responses]
scorer, bound = Scorer(), Scorer().__call__
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module in the working folder, under a name that is imported anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])

    def write(text):
        (tmp_path / "own_module.py").write_text(text)
        sys.modules.pop("own_module", None)
        sys.dont_write_bytecode = True
        importlib.invalidate_caches()
        return imported("own_module:reward")

    before = sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = before
    sys.modules.pop("own_module", None)


def test_a_module_in_the_working_folder_is_found_by_either_spelling(module):
    reward = module(FIRST)
    assert imported("own_module.reward") is reward
    assert imported("own_module:Scorer.__call__") is imported("own_module:Scorer").__call__


def test_what_is_wrong_is_told_in_words(module):
    module(FIRST)
    for name, said in (
        ("own_module:rewrad", r"own_module \(.*own_module.py\) has no 'rewrad'; did you mean 'reward'\?"),
        ("own_modul:reward", "own_modul cannot be imported .*; start from the folder that holds it, or name that"),
        ("reward", "cannot read 'reward'; write module:function"),
    ):
        with pytest.raises(ValueError, match=said):
            imported(name)
    with pytest.raises(ValueError, match=r"own_module cannot be imported \(SyntaxError: .*\)$"):
        module("def reward(:")


def test_a_name_is_told_from_a_folder_and_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.model").mkdir()
    named = ("a:b", "a.b", "a.b:c.d", "my.model", "org/model", "gpt2", "a:", "./a:b", "a:b c")
    assert [is_name(name) for name in named] == [True, True, True, *[False] * 6]


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("min(LIMIT", "max(LIMIT", True),
        ("return len(text)", "return len(text) + 1", True),  # a function that it calls
        ("LIMIT = 3", "LIMIT = 4", True),
        ("return 1", "return 2", False),  # one that it does not
        ('"Length."', '"Its length."  # in characters', False),
    ],
)
def test_the_fingerprint_follows_the_code_that_a_function_runs(module, before, after, changes):
    first = code_fingerprint(module(FIRST))
    assert code_fingerprint(module(FIRST)) == first
    assert (code_fingerprint(module(FIRST.replace(before, after))) != first) is changes


def test_the_fingerprint_of_objects_that_are_called(module):
    def fingerprints(text):
        fn = module(text)
        scorer, bound = imported("own_module:scorer"), imported("own_module:bound")
        return [code_fingerprint(one) for one in (scorer, bound, partial(fn, x=1))]

    first = fingerprints(FIRST)
    assert len({*first}) == 3
    changed = fingerprints(FIRST.replace("return len(text)", "return 0"))
    assert not {*first} & {*changed}
    assert code_fingerprint(len) == code_fingerprint(len)
