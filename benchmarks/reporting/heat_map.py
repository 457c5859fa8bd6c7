"""Token heat maps: the same responses under every redistributor, as one HTML file and in the terminal.

The file needs nothing from outside and runs no script; every piece of model text is escaped and every character that
would not print is shown by its code.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group
from rich.text import Text


@dataclass(frozen=True, kw_only=True)
class ColouredResponse:
    """One response and what each method makes of its score.

    ``rows``: token scores by arm, in score units, one scale for all. ``reference_rows``: other numbers a token, such
    as the true contributions, each in its own unit and scale.
    """

    prompt: str
    tokens: tuple[str, ...]
    score: float
    rows: Mapping[str, tuple[float, ...]]
    reference_rows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, values in {**self.rows, **self.reference_rows}.items():
            if len(values) != len(self.tokens):
                raise ValueError(f"ColouredResponse: {label} has {len(values)} values for {len(self.tokens)} tokens")


@dataclass(frozen=True, kw_only=True)
class Shade:
    """Background and a text colour that can be read on it, as #rrggbb."""

    background: str
    text: str


# Ends of a diverging scale that survives red-green blindness; white in the middle.
NEGATIVE, POSITIVE = (178, 24, 43), (33, 102, 172)


def shade(value: float, largest: float) -> Shade:
    """Colour of a value on a scale symmetric around 0; depth ∝ √(|value| / largest), so that small credit shows."""
    depth = math.sqrt(min(abs(value) / largest, 1.0)) if largest > 0 else 0.0
    end = NEGATIVE if value < 0 else POSITIVE
    mixed = (round(255 + depth * (channel - 255)) for channel in end)
    return Shade(background="#{:02x}{:02x}{:02x}".format(*mixed), text="#ffffff" if depth > 0.78 else "#1a1a1a")


def shades(example: ColouredResponse) -> dict[str, list[Shade]]:
    """A colour per row and token: all methods on one scale, every reference row on its own."""
    largest = max((abs(value) for row in example.rows.values() for value in row), default=0.0)
    coloured = {label: [shade(value, largest) for value in row] for label, row in example.rows.items()}
    for label, row in example.reference_rows.items():
        own = max((abs(value) for value in row), default=0.0)
        coloured[label] = [shade(value, own) for value in row]
    return coloured


def visible(text: str) -> str:
    """``text`` with every character that does not print (controls, bidirectional marks, ...) as its escape."""
    named = {"\n": "⏎", "\t": "⇥", "\ufffd": "\ufffd"}
    return "".join(
        named.get(c, c) if c.isprintable() or c in named else c.encode("unicode_escape").decode() for c in text
    )


CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1a1a1a;
       background: #fff }
h1 { font-size: 1.3rem; margin-bottom: .2rem } .about, .prompt { color: #777 }
section { border-top: 1px solid #ddd; padding: .8rem 0 1rem } .prompt { margin: 0 0 .4rem }
.prompt b { font-weight: 500 }
.row { display: flex; align-items: baseline; margin: 2px 0 } .label { flex: 0 0 9rem; font-weight: 600 }
.reference .label { font-weight: 400; font-style: italic }
.tokens { flex: 1; line-height: 1.9 } .sum { flex: 0 0 9.5rem; text-align: right; color: #555; font-size: 13px }
.tokens span { font-family: ui-monospace, monospace; font-size: 13px; padding: 2px 3px; margin-right: 2px;
               border-radius: 3px; white-space: pre; display: inline-block; line-height: 1.35 }
.tokens span:hover { outline: 2px solid #1a1a1a } .off { color: #b2182b; font-weight: 700 }
.key span { padding: 1px 10px; border-radius: 3px }
"""


def page(title: str, examples: Sequence[ColouredResponse]) -> str:
    """The whole HTML document; hover shows a token's value, each row ends in its sum."""
    ends = [
        f'<span style="background:{tone.background};color:{tone.text}">{name}</span>'
        for tone, name in ((shade(-1, 1), "below 0"), (shade(0, 1), "0"), (shade(1, 1), "above 0"))
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{_escaped(title)}</title><style>{CSS}</style></head><body>",
            f"<h1>{_escaped(title)}</h1>",
            '<p class="about key">The same responses, sampled from the initial policy, under every method. Colour: '
            f"token score, {' '.join(ends)}; depth ∝ √|token score|, one scale per response; rows in italics are on a "
            "scale of their own. Σ is the sum of a row; hover over a token for its value.</p>",
            *(_section(number, example) for number, example in enumerate(examples, 1)),
            "</body></html>",
            "",
        ]
    )


def _section(number: int, example: ColouredResponse) -> str:
    coloured = shades(example)
    rows = [_row(label, values, coloured[label], example) for label, values in example.rows.items()]
    rows += [
        _row(label, values, coloured[label], example, "row reference")
        for label, values in example.reference_rows.items()
    ]
    prompt = f'<p class="prompt"><b>{number}.</b> {_escaped(example.prompt)} <b>…</b> score {example.score:+.3f}</p>'
    return f"<section>{prompt}\n" + "\n".join(rows) + "</section>"


def _row(
    label: str, values: Sequence[float], tones: Sequence[Shade], example: ColouredResponse, kind: str = "row"
) -> str:
    tokens = "".join(
        f'<span style="background:{tone.background};color:{tone.text}" title="{_hover(i, value, label, example)}">'
        f"{_escaped(token)}</span>"
        for i, (token, value, tone) in enumerate(zip(example.tokens, values, tones, strict=True))
    )
    total = math.fsum(values)
    conserved = label not in example.rows or conserves(total, example.score)
    warning = "" if conserved else ' <span class="off" title="differs from the score">≠ score</span>'
    return (
        f'<div class="{kind}"><div class="label">{_escaped(label)}</div>'
        f'<div class="tokens">{tokens}</div><div class="sum">Σ {total:+.3f}{warning}</div></div>'
    )


def conserves(total: float, score: float) -> bool:
    """Whether a row's sum is the score, up to single precision."""
    return math.isclose(total, score, rel_tol=1e-4, abs_tol=1e-4)


def _hover(index: int, value: float, label: str, example: ColouredResponse) -> str:
    share = f", {100 * value / example.score:.1f} % of the score" if label in example.rows and example.score else ""
    return _escaped(f"token {index + 1} of {len(example.tokens)}: {value:+.4f}{share}")


def _escaped(text: str) -> str:
    return html.escape(visible(text), quote=True)


def terminal(examples: Sequence[ColouredResponse]) -> Group:
    """The same heat map for rich; text is never read as markup."""
    lines: list[Text] = []
    for example in examples:
        lines.append(Text(f"{visible(example.prompt)} … score {example.score:+.3f}", style="dim"))
        coloured = shades(example)
        rows = {**example.rows, **example.reference_rows}
        width = max(map(len, rows), default=0)
        for label, values in rows.items():
            line = Text(f"{visible(label):>{width}} ", style="bold" if label in example.rows else "italic")
            for token, tone in zip(example.tokens, coloured[label], strict=True):
                line.append("" if token[:1].isspace() else " ", style="not bold not italic")
                line.append(visible(token), style=f"not bold not italic {tone.text} on {tone.background}")
            line.append(f"  Σ {math.fsum(values):+.3f}", style="not bold dim")
            lines.append(line)
        lines.append(Text())
    return Group(*lines)


def write(title: str, examples: Sequence[ColouredResponse], path: Path) -> None:
    """Write the page."""
    path.write_text(page(title, examples), encoding="utf-8")
