"""The heat map: nothing in model text can become markup or control anything, columns hold tokens, sums are shown."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.pages.document import document, visible
from rlhf_core.pages.heat_map import CSS, CreditMap, coloured, largest_values, page, section, write
from rlhf_core.pages.shades import shade

HOSTILE = ("<script>alert(1)</script>", "\x1b[31m", "\x00", '" onmouseover="x', "[bold red]", "\u202e", "&amp;", "\n")
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "p", "b", "i", "br", "span", "section", "div"}
NAMES = {"lang", "charset", "http-equiv", "content", "name", "style", "class", "tabindex", "role"}
NAMES |= {"aria-label", "aria-hidden"}


def example(tokens=HOSTILE, prompt="<img src=x onerror=alert(1)> \x07 [link]", score=1.6, **further):
    even = score / len(tokens)
    rows = {"sparse": (0.0,) * (len(tokens) - 1) + (score,), "uniform": (even,) * len(tokens)}
    return CreditMap(prompt=prompt, tokens=tuple(tokens), score=score, rows=rows, **further)


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.tags, self.names, self.text, self.said = set(), set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.said += [value for name, value in attrs if name == "aria-label"]

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def shown(example):
    return "".join(read(section(example)).text)


def test_hostile_text_stays_text():
    hostile = page("<b>title</b>", [example(template=HOSTILE[:2])], "<img>")
    seen = read(hostile)
    assert seen.tags <= TAGS | {"details", "summary"}
    assert seen.names <= NAMES
    assert "<script>alert(1)</s…" in "".join(seen.text)
    assert any("<script>alert(1)</script>" in said for said in seen.said)
    assert all(character.isprintable() or character == "\n" for character in hostile)


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=4), st.text())
def test_any_text_is_shown_and_escaped(prompt, tokens, label):
    one = CreditMap(prompt=prompt, tokens=tuple(tokens), score=0.0, rows={label: (0.0,) * len(tokens)})
    seen = read(page("t", [one]))
    assert seen.tags <= TAGS
    assert seen.names <= NAMES
    html = page("t", [one])
    assert all(character.isprintable() or character == "\n" for character in html)
    html.encode("utf-8")  # lone surrogates would not survive


def test_nothing_comes_from_outside():
    html = page("t", [example()])
    assert not [word for word in ("http:", "https:", "url(", "@import", "<script") if word in html]
    assert "default-src 'none'" in html


def test_a_fragment_needs_its_css_and_no_more():
    fragment = section(example(("a", "b")))
    classes = set(" ".join(re.findall(r'class="([^"]+)"', fragment)).split())
    assert {name for name in classes if f".{name}" not in CSS} == set()
    assert fragment in document("t", fragment, CSS)


def test_values_and_sums():
    seen = read(section(example(("a", " b"), "p", 2.0)))
    assert seen.said == [
        "sparse: +0, 0.0 % of the score\ntoken 1 of 2, “a”",
        "uniform: +1, 50.0 % of the score\ntoken 1 of 2, “a”",
        "sparse: +2, 100.0 % of the score\ntoken 2 of 2, “ b”",
        "uniform: +1, 50.0 % of the score\ntoken 2 of 2, “ b”",
    ]
    text = "".join(seen.text)
    assert text.endswith("Σ+2.000+2.000\n")
    assert "score +2.000" in text
    assert "≠ score" not in text


def test_tokens_that_are_joined_are_counted():
    one = CreditMap(prompt="p", tokens=("a", "世"), counts=(1, 3), score=1.0, rows={"x": (0.25, 0.75)})
    assert [said.splitlines()[1] for said in read(section(one)).said] == [
        "token 1 of 4, “a”",
        "tokens 2 to 4 of 4, “世”",
    ]


def test_what_rounds_to_zero_has_no_minus_sign():
    text = shown(CreditMap(prompt="p", tokens=("a", "b"), score=-1e-9, rows={"x": (0.0, -1e-9)}))
    assert text.count("+0.000") == 2
    assert "−0.000" not in text


def test_a_row_that_loses_score_is_marked():
    assert "+0.800 ≠ score" in shown(CreditMap(prompt="p", tokens=("a", "b"), score=1.0, rows={"x": (0.4, 0.4)}))


def test_reference_rows_have_their_own_scale_and_owe_no_sum():
    both = CreditMap(
        prompt="p", tokens=("a", "b"), score=1.0, rows={"x": (0.5, 0.5)}, reference_rows={"truth": (0.0, -8.0)}
    )
    assert largest_values(both) == {"x": 0.5, "truth": 8.0}
    assert coloured(both)["x"][0] == shade(1, 1)
    assert coloured(both)["truth"][1] == shade(-1, 1)
    assert "≠ score" not in shown(both)
    assert "truth: a scale of its own, deepest at ±8" in shown(both)


def test_one_scale_serves_all_methods_and_the_legend_has_its_numbers():
    four = example(("a", "b", "c", "d"), "p", 4.0)
    assert coloured(four)["sparse"][-1] == shade(4, 4)
    assert coloured(four)["uniform"][0] == shade(1, 4)
    assert "token score, square-root scale−4−2−0.640+0.64+2+4" in shown(four)


def test_what_the_model_read_is_shown_where_it_is_not_what_the_caller_wrote():
    assert "a riverThe model read: a <unk>\n" in shown(example(("a", "b"), "a river", read="a <unk>"))
    assert "The model read: nothing" in shown(example(("a", "b"), "a river", read=""))
    assert "The model read" not in shown(example(("a", "b"), "a river"))


def test_the_sums_stand_beside_the_last_token():
    columns = section(example(("a", "b"))).split('<div class="last">')
    assert ">b</span>" in columns[1]
    assert "Σ" in columns[1]
    assert "Σ" not in columns[0]


def test_spaces_and_line_ends_are_seen():
    assert "·good··x⏎⏎" in shown(example((" good  x", "\n\n")))


def test_a_long_token_is_shortened_and_said_whole():
    seen = read(section(example(("=" * 60, "世" * 30))))
    assert "=" * 19 + "…" in seen.text
    assert "世" * 9 + "…" in seen.text
    assert any("=" * 60 in said for said in seen.said)


def test_a_template_and_the_middle_of_a_long_prompt_are_folded():
    html = section(example(prompt="b" * 2000 + "end", template=("<s>system", "")))
    assert html.count("<details>") == 2
    seen = "".join(read(html).text)
    assert all(part in seen for part in ("… template, 9 characters", "<s>system", "… 1503 more", "end"))
    assert "".join(seen.split("more")).count("b" * 350) >= 5
    assert "<details>" not in section(example())


def test_labels_are_repeated_for_as_many_lines_as_a_narrow_page_may_have():
    html = section(example(tuple("word" for _ in range(40))))
    assert html.count('class="block"') >= 40 * 5 / 18
    assert html.count('class="block" aria-hidden="true"') == html.count('class="block"') - 1


def test_visible_keeps_words_and_shows_codes():
    assert visible(" naïve 世界 “x”") == " naïve 世界 “x”"
    assert visible("a\nb\tc\x1b\u202e") == "a⏎b⇥c\\x1b\\u202e"


def test_lengths_that_disagree_are_refused():
    with pytest.raises(ValueError, match="x has 1 values for 2 tokens"):
        CreditMap(prompt="p", tokens=("a", "b"), score=1.0, rows={"x": (1.0,)})
    with pytest.raises(ValueError, match="counts has 1 values for 2 tokens"):
        CreditMap(prompt="p", tokens=("a", "b"), score=1.0, rows={}, counts=(2,))
    with pytest.raises(ValueError, match="at least one token"):
        CreditMap(prompt="p", tokens=(), score=1.0, rows={})


def test_write(tmp_path):
    write("t", [example()], tmp_path / "heatmap.html")
    assert (tmp_path / "heatmap.html").read_text(encoding="utf-8").startswith("<!doctype html>")
