"""What docs/reliability.md says holds a line exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELIABILITY = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_named_test_exists():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", RELIABILITY)
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
