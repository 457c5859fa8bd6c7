"""The colour scale: symmetric, small values show, and text reads on every shade, light and dark (WCAG AA)."""

import pytest

from rlhf_core.pages import document
from rlhf_core.pages.shades import DARK, DEPTHS, LIGHT, contrast, level, rules, shade, value_at


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#777777") == 1
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert contrast("#ff0000", "#ffffff") == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_text_reads_on_every_shade(scale):
    assert {place for place, one in scale.items() if contrast(one.text, one.background) < 4.5} == set()
    assert len({one.background for one in scale.values()}) == 2 * DEPTHS + 1


@pytest.mark.parametrize("colours", [document.LIGHT, document.DARK], ids=["light", "dark"])
def test_text_reads_on_the_paper(colours):
    text = ("ink", "muted", "bad")
    assert {name for name in text if contrast(colours[name], colours["paper"]) < 4.5} == set()


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_the_ends_differ_from_the_middle_and_in_hue(scale):
    below, middle, above = (scale[place].background for place in (-DEPTHS, 0, DEPTHS))
    assert contrast(below, middle) > 4.5
    assert contrast(above, middle) > 4.5
    red, blue = (lambda colour: int(colour[1:3], 16)), (lambda colour: int(colour[5:], 16))
    assert red(below) > blue(below) + 50
    assert blue(above) > red(above) + 50


def test_the_scale_is_symmetric_and_small_values_show():
    assert shade(0, 1).background == shade(0, 0).background == "#ffffff"
    assert shade(1, 1).background == shade(3, 3).background == "#2166ac"
    assert shade(-3, 3).background == shade(-9, 3).background == "#b2182b"
    assert [level(value, 4.0) for value in (-4, -1, -0.04, 0, 0.04, 1, 4)] == [-10, -5, -1, 0, 1, 5, 10]


def test_the_legend_names_the_middle_of_each_shade():
    assert [level(value_at(place, 0.3), 0.3) for place in LIGHT] == list(LIGHT)


def test_every_shade_has_a_rule_light_and_dark():
    css = rules(".x")
    assert all(css.count(f".x .{name} {{") == 2 for name in ("m10", "m1", "p0", "p1", "p10"))
