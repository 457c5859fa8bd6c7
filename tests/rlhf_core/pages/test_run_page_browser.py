"""The page of a run in a real browser, on a phone and on a desk, light and dark."""

import re

import pytest
from browser import CHROMIUM, measured, screenshot
from page_layout import MEASURE
from run_folders import run_folder

from rlhf_core.pages.run_page import page
from rlhf_core.pages.run_record import read_run
from rlhf_core.pages.shades import contrast

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return page(read_run(run_folder(tmp_path_factory.mktemp("pages") / "run")))


def colour(rgb):
    return "#{:02x}{:02x}{:02x}".format(*map(int, re.findall(r"\d+", rgb)[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 375, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_and_everything_reads(document, width, dark, tmp_path):
    found = measured(document, MEASURE, tmp_path, width=width, dark=dark)
    assert "error" not in found
    assert found["wrong"] == []
    low = {what: text for what, text in found["pairs"].items() if contrast(*map(colour, what.split(" on "))) < 4.5}
    assert low == {}
    assert found["charts"] >= 8


def test_a_picture_is_taken(document, tmp_path):
    (tmp_path / "report.html").write_text(document, encoding="utf-8")
    screenshot(tmp_path / "report.html", tmp_path / "page.png", width=1280, height=900, dark=False)
    assert (tmp_path / "page.png").stat().st_size > 20_000
