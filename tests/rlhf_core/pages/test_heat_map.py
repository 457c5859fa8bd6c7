"""The heat map: nothing in model text can become markup or control anything, colours are symmetric, sums are shown."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.pages.document import visible
from rlhf_core.pages.heat_map import CreditMap, page, shade, shades, write

HOSTILE = ("<script>alert(1)</script>", "\x1b[31m", "\x00", '" onmouseover="x', "[bold red]", "\u202e", "&amp;", "\n")


def example(tokens=HOSTILE, prompt="<img src=x onerror=alert(1)> \x07 [link]", score=1.6):
    even = score / len(tokens)
    rows = {"sparse": (0.0,) * (len(tokens) - 1) + (score,), "uniform": (even,) * len(tokens)}
    return CreditMap(prompt=prompt, tokens=tuple(tokens), score=score, rows=rows)


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.tags, self.names, self.text, self.titles = set(), set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text.append(data)


def read(document):
    reader = Reader()
    reader.feed(document)
    return reader


def test_hostile_text_stays_text():
    document = page("<b>title</b>", [example()])
    seen = read(document)
    assert not seen.tags & {"script", "img", "b1", "link", "iframe", "object", "a"}
    assert seen.names <= {"lang", "charset", "http-equiv", "content", "style", "title", "class", "name"}
    assert "<script>alert(1)</script>" in "".join(seen.text)
    assert all(character.isprintable() or character == "\n" for character in document)


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_any_text_is_shown_and_escaped(prompt, tokens):
    document = page("t", [example(tokens, prompt)])
    seen = read(document)
    assert seen.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "p", "b", "span", "section", "div"}
    assert all(character.isprintable() or character == "\n" for character in document)
    document.encode("utf-8")  # lone surrogates would not survive


def test_nothing_comes_from_outside():
    document = page("t", [example()])
    assert not [word for word in ("http:", "https:", "url(", "@import") if word in document]
    assert "default-src 'none'" in document


def test_hover_and_sums():
    document = page("t", [example(("a", "b"), "p", 2.0)])
    assert read(document).titles[:2] == [
        "token 1 of 2: +0.0000, 0.0 % of the score",
        "token 2 of 2: +2.0000, 100.0 % of the score",
    ]
    assert document.count("Σ +2.000") == 2
    assert "≠ score" not in document


def test_a_row_that_loses_score_is_marked():
    broken = CreditMap(prompt="p", tokens=("a", "b"), score=1.0, rows={"x": (0.4, 0.4)})
    assert "≠ score" in page("t", [broken])


def test_reference_rows_have_their_own_scale_and_owe_no_sum():
    both = CreditMap(
        prompt="p", tokens=("a", "b"), score=1.0, rows={"x": (0.5, 0.5)}, reference_rows={"truth": (0.0, -8.0)}
    )
    assert shades(both)["x"][0] == shade(1, 1)
    assert shades(both)["truth"][1] == shade(-1, 1)
    assert "≠ score" not in page("t", [both])


def test_colours_are_symmetric_and_one_scale_serves_all_methods():
    assert shade(0, 1).background == "#ffffff"
    assert shade(1, 1).background == "#2166ac"
    assert shade(-3, 3).background == "#b2182b"
    assert shade(0.25, 1) == shade(1, 4)
    tones = shades(example(("a", "b", "c", "d"), "p", 4.0))
    assert tones["sparse"][-1] == shade(4, 4)
    assert tones["uniform"][0] == shade(1, 4)
    assert shade(0, 0).background == "#ffffff"


def test_the_text_can_be_read_on_every_shade():
    def luminance(colour):
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for percent in range(-100, 101, 5):
        tone = shade(percent / 100, 1)
        bright, dark = sorted((luminance(tone.background), luminance(tone.text)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 3.5, percent  # WCAG asks 3 of large or bold text


def test_visible_keeps_words_and_shows_codes():
    assert visible(" naïve 世界 “x”") == " naïve 世界 “x”"
    assert visible("a\nb\tc\x1b\u202e") == "a⏎b⇥c\\x1b\\u202e"


def test_lengths_that_disagree_are_refused():
    with pytest.raises(ValueError, match="x has 1 values for 2 tokens"):
        CreditMap(prompt="p", tokens=("a", "b"), score=1.0, rows={"x": (1.0,)})


def test_write(tmp_path):
    write("t", [example()], tmp_path / "heatmap.html")
    assert (tmp_path / "heatmap.html").read_text(encoding="utf-8").startswith("<!doctype html>")
