"""Line charts: what is drawn where, and that gaps, single points and long curves are told as they are."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from rlhf_core.pages.curves import HEIGHT, MOST_POINTS, MOST_ROWS, WIDTH, Chart, Curve, figure, number, ticks

NAN = math.nan


def chart(*values: float, **settings) -> str:
    curve = Curve(label="sparse", steps=tuple(range(1, len(values) + 1)), values=values)
    return figure(Chart(title="Score", sentence="Should rise.", curves=(curve,), **settings))


def lines(drawn: str) -> list[list[tuple[float, float]]]:
    """Points of every unbroken line."""
    found = re.findall(r'<polyline class="line" points="([^"]*)"', drawn)
    return [[tuple(map(float, point.split(","))) for point in one.split()] for one in found]


def test_a_line_goes_through_its_points_from_left_to_right_and_higher_values_stand_higher():
    [line] = lines(chart(0.0, 2.0, 1.0))
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x1 < x2 < x3
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11)
    assert y1 > y3 > y2
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.11)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)


def test_what_is_undefined_is_a_gap_and_is_said():
    drawn = chart(1.0, 2.0, NAN, 1.0, 2.0, math.inf, 3.0)
    assert [len(line) for line in lines(drawn)] == [2, 2]  # and a dot
    assert drawn.count('class="dot"') == 5
    assert "undefined at 2 of 7 steps" in drawn
    assert "nan" not in drawn.lower().replace("sans-serif", "")
    assert "inf" not in drawn


def test_one_point_is_a_dot_on_axes_with_numbers():
    drawn = chart(0.25)
    assert lines(drawn) == []
    assert drawn.count('class="dot"') == 1
    assert "0.25" in drawn


def test_equal_values_are_a_level_line():
    [line] = lines(chart(0.0, 0.0, 0.0))
    assert len({y for _, y in line}) == 1


def test_nothing_defined_is_said_in_place_of_a_picture():
    drawn = chart(NAN, NAN)
    assert "<svg" not in drawn
    assert "No step has defined" in drawn


def test_a_long_curve_is_drawn_as_means_within_a_band_of_all_its_values_and_says_so():
    values = [float(step % 7) for step in range(10 * MOST_POINTS)]
    drawn = chart(*values)
    [line] = lines(drawn)
    assert len(line) == MOST_POINTS
    [band] = re.findall(r'<polygon class="band" points="([^"]*)"', drawn)
    assert len(band.split()) == 2 * MOST_POINTS
    assert "mean of 10 steps" in drawn
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>', drawn)
    assert len(rows) <= MOST_ROWS + 1
    assert (rows[0], rows[-1]) == ("1", str(len(values)))


def test_arms_have_a_legend_bands_and_columns_of_their_own():
    curves = [
        Curve(label=name, steps=(1, 2), values=(value, value), low=(value - 1, value - 1), high=(value + 1, value + 1))
        for name, value in (("sparse", 1.0), ("a<b>", 2.0))
    ]
    drawn = figure(Chart(title="Score", sentence="", curves=tuple(curves), guide=(1.5, "target")))
    assert drawn.count('class="band"') == 2
    assert drawn.count("<li ") == 2
    assert "a&lt;b&gt;" in drawn
    assert "<b>" not in drawn
    assert "2 [1, 3]" in drawn
    assert ">target</text>" in drawn


def test_the_picture_is_well_formed_and_told_to_those_who_do_not_see_it():
    drawn = chart(1.0, 3.0)
    root = ElementTree.fromstring(drawn)
    picture = next(one for one in root.iter() if one.tag == "svg")
    assert picture.get("role") == "img"
    assert "1 at step 1, 3 at step 2" in picture.get("aria-label")
    assert [cell.text for cell in root.iter("td")] == ["1", "3"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.0, 7.0), (1e-9, 3e-9), (1e6, 1.1e6), (0.1, 0.11), (-1e-4, 1.0)]
)
def test_ticks_are_round_equally_apart_and_cover_the_range(low, high):
    found = ticks(low, high)
    gaps = [b - a for a, b in pairwise(found)]
    assert 2 <= len(found) <= 6
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)
    assert float(f"{gaps[0] / 10.0 ** math.floor(math.log10(gaps[0]) + 1e-9):.6g}") in (1, 2, 2.5, 5, 10)
    assert low - 1e-9 * gaps[0] <= found[0] < low + gaps[0]
    assert high - gaps[0] < found[-1] <= high + 1e-9 * gaps[0]


def test_numbers_have_four_digits_and_a_minus_sign():
    assert [number(x) for x in (-0.5, 1234.56, 2.5e-7, NAN, -0.0)] == ["−0.5", "1235", "2.5e−7", "–", "0"]


@pytest.mark.parametrize(("count", "paler"), [(2, False), (3, True)])
def test_bands_that_lie_over_each_other_are_drawn_paler(count, paler):
    one = Curve(label="a", steps=(1, 2), values=(1.0, 2.0), low=(0.0, 1.0), high=(2.0, 3.0))
    drawn = figure(Chart(title="Score", sentence="", curves=(one,) * count))
    assert drawn.count('class="band"') == count
    assert ('<svg class="crowded"' in drawn) == paler


def test_a_curve_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="'sparse': lengths differ"):
        Curve(label="sparse", steps=(1, 2), values=(1.0,))
    with pytest.raises(ValueError, match="lengths differ"):
        Curve(label="sparse", steps=(1, 2), values=(1.0, 2.0), low=(1.0,), high=(1.0,))
