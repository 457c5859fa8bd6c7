"""The heat map in a real browser, on a phone and on a desk, light and dark: nothing overlaps, nothing is cropped,
labels stand beside their rows on every wrapped line, and all text reads (WCAG AA)."""

import random
import re

import pytest
from browser import CHROMIUM, measured, screenshot
from page_layout import BEGIN, COLOURS

from rlhf_core.pages.heat_map import CreditMap, page
from rlhf_core.pages.shades import contrast

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

WORDS = (
    "A beautiful film , the acting was superb and I enjoyed every minute of it . The plot , though , is thin "
    "\n\n naïve 你 好 🎉 antidisestablishmentarianism ===================================== <|im_end|>"
)
METHODS = (
    *("sparse", "uniform", "abc", "prefix-difference", "integrated-gradients", "potential-projection"),
    *(
        "RewardAttention(beta=0.8, layer=-1, heads=(0, 3))",
        "a_label_without_any_place_to_break_it",
        "报酬的注意力机制方法",
    ),
)
TEMPLATE = ("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
MEASURE = (
    BEGIN
    + """
  all("h1, p, .prompt, .scale > *, .chips > *, summary, .token, .sum").forEach((one) => {
    const box = one.getBoundingClientRect();
    if (box.left < 0 || box.right > wide + 0.5) wrong.push("leaves the page: " + text(one));
    if (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline")
      wrong.push("is cropped: " + text(one));
  });
  let lines = 0;
  all(".map").forEach((map) => {
    const frame = map.querySelector(".labels").getBoundingClientRect();
    const blocks = all(".block", map).filter((one) => one.getBoundingClientRect().top < frame.bottom - 1);
    const tops = new Set();
    all(".column", map).forEach((column) => {
      const box = column.getBoundingClientRect();
      if (box.right > wide + 0.5) wrong.push("a column leaves the page: " + text(column));
      tops.add(Math.round(box.top));
      const block = blocks.find((one) => Math.abs(one.getBoundingClientRect().top - box.top) < 1);
      if (!block) { wrong.push("no labels beside " + text(column)); return; }
      all(".label", block).forEach((label, row) => {
        const left = label.getBoundingClientRect(), right = column.children[row + 1].getBoundingClientRect();
        const higher = column.classList.contains("sums") ? 0 : Math.max(0, left.height - right.height);
        if (Math.abs(left.top + left.bottom - right.top - right.bottom) > 2 || higher > 1)
          wrong.push("not beside its row: " + text(label));
        const range = document.createRange();
        range.selectNodeContents(label);
        const said = range.getBoundingClientRect();
        if (said.right > frame.right + 0.5 || said.left < frame.left) wrong.push("label is cropped: " + text(label));
        if (frame.right > right.left) wrong.push("label covers cells: " + text(label));
      });
    });
    if (blocks.length !== tops.size) wrong.push(blocks.length + " blocks of labels for " + tops.size + " lines");
    lines = Math.max(lines, tops.size);
    const boxes = all(".cell, .token, .sum", map).map((one) => [one, one.getBoundingClientRect()]);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right - 0.5 && b.left < a.right - 0.5 && a.top < b.bottom - 0.5 && b.top < a.bottom - 0.5)
        wrong.push("overlap: " + text(one) + " " + one.className + ", " + text(other) + " " + other.className);
    }));
  });
"""
    + COLOURS
    + """
  all(".cell").forEach((cell) => {
    cell.focus();
    if (document.activeElement !== cell) wrong.push("cannot be reached: " + cell.ariaLabel);
    const tip = getComputedStyle(cell, "::after");
    pairs[tip.color + " on " + tip.backgroundColor] = "tip";
    if (tip.content === "none") wrong.push("says nothing: " + cell.ariaLabel);
    overflows("at " + cell.ariaLabel);
  });
  return {wrong: wrong.slice(0, 20), pairs, lines, width: wide, paper: paper(document.body)};
}
"""
)


def drawn(tokens, score, methods=METHODS, **further):
    generator = random.Random(3)
    rows = {}
    for method in methods:
        values = [generator.gauss(0, 0.4) for _ in tokens]
        rows[method] = (*values[:-1], score - sum(values[:-1]))
    return CreditMap(prompt="I saw it last night and it was", tokens=tokens, score=score, rows=rows, **further)


@pytest.fixture(scope="module")
def document():
    tokens = tuple((" " if place else "") + word for place, word in enumerate(WORDS.split(" ")))
    whole = drawn(
        tokens,
        1.6,
        reference_rows={"true contribution": tuple(float(place % 5 - 2) for place in range(len(tokens)))},
        template=TEMPLATE,
    )
    broken = CreditMap(
        prompt="word " * 300 + "x" * 200, tokens=("a", "b"), score=-1234.5, rows={"loses some": (-1.0, 0.5)}
    )
    nothing = CreditMap(prompt="", tokens=("⟨eos⟩",), score=0.0, rows={"sparse": (0.0,)})
    return page("Credit on three responses", [whole, broken, nothing], "All that is hard to lay out.")


@pytest.fixture(scope="module", params=[320, 375, 1280])
def width(request):
    return request.param


@pytest.fixture(scope="module", params=["light", "dark"])
def dark(request):
    return request.param == "dark"


def colour(rgb):
    return "#{:02x}{:02x}{:02x}".format(*map(int, re.findall(r"\d+", rgb)[:3]))


@pytest.mark.slow
def test_everything_is_in_its_place_and_reads(document, width, dark, tmp_path):
    found = measured(document, MEASURE, tmp_path, width=width, dark=dark)
    assert "error" not in found
    assert found["width"] == width
    assert found["wrong"] == []
    assert found["lines"] >= (2 if width > 500 else 6)
    low = {
        pair: text
        for pair, text in found["pairs"].items()
        if contrast(*(colour(part) for part in pair.split(" on "))) < 4.5
    }
    assert low == {}
    assert len(found["pairs"]) > 8
    assert (contrast("#000000", colour(found["paper"])) < 2) is dark


@pytest.mark.slow
def test_a_picture_is_taken(document, width, dark, tmp_path):
    (tmp_path / "page.html").write_text(document, encoding="utf-8")
    picture = tmp_path / "page.png"
    screenshot(tmp_path / "page.html", picture, width=width, height=900, dark=dark)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
