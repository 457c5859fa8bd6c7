"""What docs/reliability.md says holds a line exists; docs/methods.md has every method, with what it declares."""

import re
from pathlib import Path

import pytest

from redistributors import REDISTRIBUTORS

ROOT = Path(__file__).resolve().parents[2]
RELIABILITY = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", RELIABILITY)
    assert len(named) == RELIABILITY.count("::")
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or not re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing


def test_every_silent_bug_is_ticked():
    _, ticked = RELIABILITY.split("## Silent bugs")
    rows = [line.split(" | ") for line in ticked.splitlines() if line.startswith("| ")]
    open_rows = [row[0] for row in rows if row[1].strip("| ") != "held by" and "::" not in row[1]]
    assert len(rows) > 80
    assert not open_rows


METHODS = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(" `"): [cell.strip() for cell in cells[1:]]
    for line in METHODS.split("## What is declared")[0].splitlines()
    if line.startswith("| `") and len(cells := re.split(r"(?<!\\)\|", line.strip("| "))) == 7
}


@pytest.mark.parametrize("name", REDISTRIBUTORS)
def test_the_page_of_methods_says_what_each_declares(name):
    method = REDISTRIBUTORS[name]()
    _, _, sums_to, causal, shaping, _ = ROWS[name]
    assert causal.startswith("yes") == method.causal
    assert shaping.startswith("yes") == getattr(method, "shaping", False)
    assert sums_to.startswith(("the score", "what the inner")) == method.conserving
