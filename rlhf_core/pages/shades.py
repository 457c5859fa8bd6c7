"""Colours of token scores: a diverging scale that survives colour blindness, with text that reads on each of them."""

import math
from dataclasses import dataclass

Channels = tuple[int, int, int]
DEPTHS = 10
"""Shades on each side of 0."""
MIDDLE, NEGATIVE, POSITIVE = (255, 255, 255), (178, 24, 43), (33, 102, 172)
"""Of the light scale: 0, and the largest score below and above it. Red and blue stay apart without red-green vision."""
DARK_MIDDLE, DARK_NEGATIVE, DARK_POSITIVE = (33, 38, 46), (255, 133, 105), (122, 188, 255)
"""The same on a dark page, where the largest scores are the brightest."""


@dataclass(frozen=True, kw_only=True)
class Shade:
    """A background, and the text colour with more contrast on it (4.5 and more), as #rrggbb."""

    background: str
    text: str


def level(value: float, largest: float) -> int:
    """Place of a value on the scale, from −``DEPTHS`` to ``DEPTHS``, symmetric around 0. It grows with
    √(|value| / largest), so that small credit shows."""
    depth = math.sqrt(min(abs(value) / largest, 1.0)) if largest > 0 else 0.0
    return round(math.copysign(DEPTHS * depth, value))


def value_at(place: int, largest: float) -> float:
    """The value in the middle of a shade: what :func:`level` puts at ``place``."""
    return math.copysign(largest * (place / DEPTHS) ** 2, place)


def shade(value: float, largest: float) -> Shade:
    """The shade of a value on a light page."""
    return LIGHT[level(value, largest)]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours (#rrggbb) as WCAG 2 defines it: 1 to 21."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _scale(middle: Channels, negative: Channels, positive: Channels) -> dict[int, Shade]:
    return {
        place: _mixed(middle, negative if place < 0 else positive, abs(place) / DEPTHS)
        for place in range(-DEPTHS, DEPTHS + 1)
    }


def _mixed(middle: Channels, end: Channels, depth: float) -> Shade:
    channels = (round(start + depth * (stop - start)) for start, stop in zip(middle, end, strict=True))
    background = "#{:02x}{:02x}{:02x}".format(*channels)
    return Shade(background=background, text=max("#000000", "#ffffff", key=lambda text: contrast(background, text)))


LIGHT, DARK = _scale(MIDDLE, NEGATIVE, POSITIVE), _scale(DARK_MIDDLE, DARK_NEGATIVE, DARK_POSITIVE)
"""Shades by their place on the scale."""


def name(place: int) -> str:
    """CSS class of a shade."""
    return f"m{-place}" if place < 0 else f"p{place}"


def rules(within: str) -> str:
    """CSS of every shade inside the selector ``within``, light and dark."""

    def written(scale: dict[int, Shade]) -> str:
        return "\n".join(
            f"{within} .{name(place)} {{ background: {one.background}; color: {one.text} }}"
            for place, one in scale.items()
        )

    return f"{written(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{written(DARK)}\n}}\n"
