"""Heat maps of credit: one response under every method, token by token, as HTML."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_core.pages.document import document, escaped


@dataclass(frozen=True, kw_only=True)
class CreditMap:
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
                raise ValueError(f"CreditMap: {label} has {len(values)} values for {len(self.tokens)} tokens")


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


def shades(example: CreditMap) -> dict[str, list[Shade]]:
    """A colour per row and token: all methods on one scale, every reference row on its own."""
    largest = max((abs(value) for row in example.rows.values() for value in row), default=0.0)
    coloured = {label: [shade(value, largest) for value in row] for label, row in example.rows.items()}
    for label, row in example.reference_rows.items():
        own = max((abs(value) for value in row), default=0.0)
        coloured[label] = [shade(value, own) for value in row]
    return coloured


CSS = """
.credit { border-top: 1px solid var(--line); padding: .8rem 0 1rem } .prompt { margin: 0 0 .4rem; color: var(--muted) }
.row { display: flex; align-items: baseline; margin: 2px 0 } .label { flex: 0 0 9rem; font-weight: 600 }
.reference .label { font-weight: 400; font-style: italic }
.tokens { flex: 1; line-height: 1.9 } .sum { flex: 0 0 9.5rem; text-align: right; color: #555; font-size: 13px }
.tokens span { font-family: ui-monospace, monospace; font-size: 13px; padding: 2px 3px; margin-right: 2px;
               border-radius: 3px; white-space: pre; display: inline-block; line-height: 1.35 }
.tokens span:hover { outline: 2px solid #1a1a1a } .off { color: var(--bad); font-weight: 700 }
"""


def section(example: CreditMap) -> str:
    """One response as an HTML fragment; a document that holds it needs ``CSS``."""
    coloured = shades(example)
    rows = [_row(label, values, coloured[label], example) for label, values in example.rows.items()]
    rows += [
        _row(label, values, coloured[label], example, "row reference")
        for label, values in example.reference_rows.items()
    ]
    prompt = f'<p class="prompt">{escaped(example.prompt)} <b>…</b> score {example.score:+.3f}</p>'
    return f'<section class="credit">{prompt}\n' + "\n".join(rows) + "</section>"


def page(title: str, examples: Sequence[CreditMap], about: str = "") -> str:
    """A whole HTML document; ``about`` is a plain sentence under its title."""
    said = f'<p class="about">{escaped(about)}</p>\n' if about else ""
    return document(title, said + "\n".join(map(section, examples)), CSS)


def write(title: str, examples: Sequence[CreditMap], path: Path, about: str = "") -> None:
    """Write the page."""
    path.write_text(page(title, examples, about), encoding="utf-8")


def _row(label: str, values: Sequence[float], tones: Sequence[Shade], example: CreditMap, kind: str = "row") -> str:
    tokens = "".join(
        f'<span style="background:{tone.background};color:{tone.text}" title="{_hover(i, value, label, example)}">'
        f"{escaped(token)}</span>"
        for i, (token, value, tone) in enumerate(zip(example.tokens, values, tones, strict=True))
    )
    total = math.fsum(values)
    conserved = label not in example.rows or conserves(total, example.score)
    warning = "" if conserved else ' <span class="off" title="differs from the score">≠ score</span>'
    return (
        f'<div class="{kind}"><div class="label">{escaped(label)}</div>'
        f'<div class="tokens">{tokens}</div><div class="sum">Σ {total:+.3f}{warning}</div></div>'
    )


def conserves(total: float, score: float) -> bool:
    """Whether a row's sum is the score, up to single precision."""
    return math.isclose(total, score, rel_tol=1e-4, abs_tol=1e-4)


def _hover(index: int, value: float, label: str, example: CreditMap) -> str:
    share = f", {100 * value / example.score:.1f} % of the score" if label in example.rows and example.score else ""
    return escaped(f"token {index + 1} of {len(example.tokens)}: {value:+.4f}{share}")
