"""The tour names files that exist, in a length that is true."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
STOPS = re.findall(r"^\| (\d+) \| `([\w/]+\.py)` \| (\d+) \| .* \| (.*) \|$", TOUR, flags=re.MULTILINE)


def lines(file: str) -> int:
    return len((ROOT / file).read_text(encoding="utf-8").splitlines())


def test_it_has_thirteen_stops_of_about_two_thousand_lines():
    assert [int(number) for number, *_ in STOPS] == list(range(1, 14))
    assert abs(sum(lines(file) for _, file, *_ in STOPS) - 2000) < 200
    assert "Thirteen files, about 2,000 lines" in TOUR


def test_every_stop_says_its_length():
    said = {file: int(length) for _, file, length, _ in STOPS}
    assert {file: length for file, length in said.items() if abs(length - lines(file)) > 10} == {}


def test_what_may_be_skipped_is_there():
    named = [(file, name) for _, file, _, skip in STOPS for name in re.findall(r"`(?:\w+\.)?(\w+)`", skip)]
    assert len(named) > 5
    missing = [
        (file, name)
        for file, name in named
        if not re.search(rf"^ *(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_other_file_it_names_exists():
    rest = TOUR.split("## What these files call")[1]
    named = re.findall(r"`([\w/]+\.py|[\w/]+/)`", rest)
    assert len(named) > 8
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / "rlhf_core" / name).exists())] == []
