"""Heat maps of credit: one response under every method, token by token, as HTML.

A map is a grid that wraps: a column for each token, a row for each method. Wrapped lines are all of one height, so the
labels to their left are one block, repeated, of which the page shows as many as there are lines: no script is needed.
"""

import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_core.pages import document, shades
from rlhf_core.pages.curves import signed
from rlhf_core.pages.document import escaped, visible
from rlhf_core.pages.shades import Shade, shade

LABEL, TOKEN = 20, 20
"""Widest line of a label, and widest token, in characters; longer labels wrap, and longer tokens are shortened."""
NARROWEST = 18
"""Characters that fit beside the labels on the narrowest page (320 px)."""
PROMPT = (600, 350, 150)
"""A prompt of more characters than the first is folded: so many of its beginning and its end are shown."""
LEGEND = (-10, -7, -4, 0, 4, 7, 10)
"""Places on the colour scale that the legend shows with their values."""
HOW_TO_READ = (
    "Each column is a token, each row a method. Blue adds to the score, red takes from it. The strength of the colour "
    "grows with the square root of the value, so that small values show. Point at a cell, tap it or move to it with "
    "the Tab key for its value. Σ is the sum of a row. A dot stands for a space, ⏎ for the end of a line."
)


@dataclass(frozen=True, kw_only=True)
class CreditMap:
    """One response and what each method makes of its score.

    ``tokens`` are texts, a column of the map each; ``counts`` says how many tokens a column joins (left out: one each).
    ``rows``: token scores by method, in score units, one scale for all. ``reference_rows``: other numbers of each
    token, such as the true contributions, each in its own unit and scale. ``template`` is what stands before and after
    the prompt in all prompts of its kind; a page folds it. ``read`` is what the model read, where ``prompt`` is not in
    it word for word: a tokenizer may write <unk> for a word. It is None where ``prompt`` says it all.

    Raises:
        ValueError: no tokens, or a row or ``counts`` of another length than ``tokens``.
    """

    prompt: str
    tokens: tuple[str, ...]
    score: float
    rows: Mapping[str, tuple[float, ...]]
    reference_rows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    template: tuple[str, str] = ("", "")
    read: str | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("CreditMap: a response has at least one token, got none")
        counted = {"counts": self.counts} if self.counts else {}
        for label, values in {**self.rows, **self.reference_rows, **counted}.items():
            if len(values) != len(self.tokens):
                raise ValueError(f"CreditMap: {label} has {len(values)} values for {len(self.tokens)} tokens")


def largest_values(example: CreditMap) -> dict[str, float]:
    """The value of the deepest colour in each row: one for all methods, and one for each reference row."""
    largest = max((abs(value) for row in example.rows.values() for value in row), default=0.0)
    own = {label: max(map(abs, row), default=0.0) for label, row in example.reference_rows.items()}
    return {**dict.fromkeys(example.rows, largest), **own}


def coloured(example: CreditMap) -> dict[str, list[Shade]]:
    """A shade for each row and token, as on a light page."""
    largest = largest_values(example)
    return {
        label: [shade(value, largest[label]) for value in row]
        for label, row in {**example.rows, **example.reference_rows}.items()
    }


def conserves(total: float, score: float) -> bool:
    """Whether a row's sum is the score, up to single precision."""
    return math.isclose(total, score, rel_tol=1e-4, abs_tol=1e-4)


CSS = (
    document.themed(".credit", document.LIGHT, document.DARK)
    + """
.credit { --line-height: 1.2rem; --token-height: 1.55rem; --line-gap: .7rem;
          color: var(--ink); background: var(--paper); border-top: 1px solid var(--line); padding: 1rem 0 1.4rem;
          font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; text-align: left }
.credit .prompt { color: var(--muted); margin: 0 0 .6rem; max-width: 60rem; white-space: pre-wrap }
.credit .read { color: var(--muted); margin: -.4rem 0 .6rem; max-width: 60rem; font-size: .85rem;
                white-space: pre-wrap }
.credit details { display: inline-block; vertical-align: top }
.credit details[open] { display: block; margin: .3rem 0 }
.credit summary { display: inline-block; cursor: pointer; border: 1px solid var(--muted); border-radius: 1rem;
                  padding: 0 .6rem; font-size: .8rem; margin-right: .4rem }
.credit .scale { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .8rem; margin: 0 0 .9rem;
                 font-size: .85rem }
.credit .chips { display: flex; flex-wrap: wrap; border: 1px solid var(--line) }
.credit .chips span { padding: .05rem .5rem; font: .75rem/1.5 ui-monospace, monospace }
.credit .map { position: relative; font: .75rem/1.15rem ui-monospace, monospace }
.credit .labels { position: absolute; inset: 0 auto 0 0; width: var(--label); overflow: hidden }
.credit .block, .credit .column { display: grid; row-gap: 2px;
          grid-template-rows: var(--token-height) var(--heights) }
.credit .block { margin-bottom: var(--line-gap) }
.credit .label { white-space: nowrap; align-self: center; font-weight: 600 }
.credit .reference { font-weight: 400; font-style: italic }
.credit .columns, .credit .last { display: flex; flex-wrap: wrap; gap: var(--line-gap) 2px }
.credit .columns { margin-left: calc(var(--label) + .6rem) } .credit .last { max-width: 100% }
.credit .column { flex: none; min-width: 1.1rem }
.credit .token { font-size: .8rem; line-height: var(--token-height); text-align: center; white-space: nowrap;
                 unicode-bidi: isolate; padding: 0 .2rem }
.credit .token i { color: var(--muted); font-style: normal }
.credit .cell { box-shadow: inset 0 0 0 1px var(--line); border-radius: 2px; cursor: default }
.credit .cell, .credit .chips span { forced-color-adjust: none; print-color-adjust: exact }
.credit .cell:hover, .credit .cell:focus { outline: 2px solid var(--ink); outline-offset: 0; z-index: 1 }
.credit .cell:hover::after, .credit .cell:focus::after { content: attr(aria-label); position: absolute; z-index: 2;
          box-sizing: border-box; left: 0; width: max-content; max-width: 100%;
          margin-top: calc(var(--line-height) + .3rem); padding: .3rem .6rem; border-radius: 4px;
          background: var(--ink); color: var(--paper); pointer-events: none;
          white-space: pre-wrap; font: .8rem/1.4 system-ui, sans-serif }
@supports (position-anchor: --pointed) {
  .credit .cell:focus { anchor-name: --focused } .credit .cell:focus::after { position-anchor: --focused }
  .credit .cell:hover { anchor-name: --pointed } .credit .cell:hover::after { position-anchor: --pointed }
  .credit .cell:hover::after, .credit .cell:focus::after { right: 0; justify-self: anchor-center }
}
.credit .sums { margin-left: .5rem }
.credit .sum { align-self: center; white-space: nowrap; text-align: right }
.credit .off { color: var(--bad); font-weight: 700 }
@media (max-width: 500px) { .credit { --line-height: 1.05rem; --token-height: 1.4rem }
  .credit .map { font-size: .66rem; line-height: 1rem } .credit .token { font-size: .72rem }
  .credit .chips span { padding: .05rem .25rem; font-size: .7rem } }
"""
    + shades.rules(".credit")
)
"""What a document or a notebook needs beside a :func:`section`."""


def section(example: CreditMap) -> str:
    """One response as an HTML fragment; a document that holds it needs ``CSS``."""
    rows = {**example.rows, **example.reference_rows}
    labels = {label: _label_lines(label) for label in rows}
    heights = " ".join(f"calc({len(lines)} * var(--line-height))" for lines in labels.values()) or "0"
    columns = _columns(example)
    widths = [max(2, _width(token)) + 1 for token in example.tokens]
    most = len(columns) + 1  # the last holds two, which a narrow page may part
    copies = min(most, 2 * sum(widths) // NARROWEST + 2)  # two lines in a row hold more than one line's width
    block = _label_block(labels, example)
    label = max((_width(line) for lines in labels.values() for line in lines), default=0)
    hidden = block.replace('class="block"', 'class="block" aria-hidden="true"')
    return "\n".join(
        [
            '<section class="credit">',
            f'<div class="prompt">{_prompt(example)}</div>{_read(example)}',
            _legend(example),
            f'<div class="map" style="--label: {label}ch; --heights: {heights}">',
            f'<div class="labels">{block}{hidden * (copies - 1)}</div>',
            f'<div class="columns">{"".join(columns)}</div></div>',
            "</section>",
        ]
    )


def page(title: str, examples: Sequence[CreditMap], about: str = "") -> str:
    """A whole HTML document; ``about`` is a plain sentence or two under its title."""
    said = f'<p class="about">{escaped(f"{about} {HOW_TO_READ}".strip())}</p>\n'
    return document.document(title, said + "\n".join(map(section, examples)), CSS)


def write(title: str, examples: Sequence[CreditMap], path: Path, about: str = "") -> None:
    """Write the page."""
    path.write_text(page(title, examples, about), encoding="utf-8")


def _prompt(example: CreditMap) -> str:
    before, after = (_folded(f"template, {_characters(text)}", text) if text else "" for text in example.template)
    return f"{before}{_shortly(example.prompt)}{after}"


def _read(example: CreditMap) -> str:
    """What the model read, where it is not what the caller wrote."""
    if example.read is None:
        return ""
    return f'<div class="read">The model read: {_shortly(example.read) or "nothing"}</div>'


def _shortly(text: str) -> str:
    """A text whose middle is folded where it is long."""
    most, start, end = PROMPT
    if len(text) <= most:
        return _lines(text)
    middle = text[start:-end]
    return f"{_lines(text[:start])}{_folded(f'{len(middle)} more', middle)}{_lines(text[-end:])}"


def _characters(text: str) -> str:
    return f"{len(text)} character{'' if len(text) == 1 else 's'}"


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>… {summary}</summary>{_lines(text)}</details>"


def _lines(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))


def _legend(example: CreditMap) -> str:
    largest = largest_values(example)
    of_methods = next((largest[label] for label in example.rows), 0.0)
    places = LEGEND if of_methods else (0,)
    chips = "".join(
        f'<span class="{shades.name(place)}">{_number(shades.value_at(place, of_methods))}</span>' for place in places
    )
    own = "".join(
        f"<span>{escaped(label)}: a scale of its own, deepest at ±{signed(f'{largest[label]:.3g}')}</span>"
        for label in example.reference_rows
    )
    return (
        f'<div class="scale"><b>score {signed(f"{example.score:+z.3f}")}</b><span>token score, square-root scale</span>'
        f'<span class="chips">{chips}</span>{own}</div>'
    )


def _number(value: float) -> str:
    return signed(f"{value:+.2g}") if value else "0"


def _label_lines(label: str) -> list[str]:
    """The lines that a label takes beside the map."""
    text = visible(label)
    width = LABEL if _width(text) == len(text) else LABEL // 2
    return textwrap.wrap(text, width) or [""]


def _label_block(labels: Mapping[str, Sequence[str]], example: CreditMap) -> str:
    shown = "".join(
        f'<div class="label{"" if label in example.rows else " reference"}">{"<br>".join(map(escaped, lines))}</div>'
        for label, lines in labels.items()
    )
    return f'<div class="block"><div></div>{shown}</div>'


def _columns(example: CreditMap) -> list[str]:
    """A column for each token; beside the last one stands that of the sums."""
    rows, largest = {**example.rows, **example.reference_rows}, largest_values(example)
    counts = example.counts or (1,) * len(example.tokens)
    total, first, columns = sum(counts), 1, []
    for place, (token, count) in enumerate(zip(example.tokens, counts, strict=True)):
        where = f"token {first}" if count == 1 else f"tokens {first} to {first + count - 1}"
        said = f"{where} of {total}, “{_shortened(visible(token), 200)}”"
        cells = "".join(
            _cell(label, values[place], largest[label], said, example.score if label in example.rows else 0.0)
            for label, values in rows.items()
        )
        columns.append(f'<div class="column"><span class="token">{_token(token)}</span>{cells}</div>')
        first += count
    sums = "".join(_sum(label, math.fsum(values), example) for label, values in rows.items())
    sums = f'<div class="column sums"><span class="token">Σ</span>{sums}</div>'
    return [*columns[:-1], f'<div class="last">{columns[-1]}{sums}</div>']  # a line never begins with the sums alone


def _cell(label: str, value: float, largest: float, said: str, score: float) -> str:
    share = f", {100 * value / score:z.1f} % of the score" if score else ""
    text = escaped(f"{label}: ") + signed(f"{value:+z.4g}{share}") + "\n" + escaped(said)
    colour = shades.name(shades.level(value, largest))
    return f'<span class="cell {colour}" tabindex="0" role="img" aria-label="{text}"></span>'


def _sum(label: str, total: float, example: CreditMap) -> str:
    conserved = label not in example.rows or conserves(total, example.score)
    warning = "" if conserved else ' <span class="off">≠ score</span>'
    return f'<span class="sum">{signed(f"{total:+z.3f}")}{warning}</span>'


def _token(text: str) -> str:
    """A token's text with its spaces as dots."""
    return escaped(_shortened(visible(text), TOKEN)).replace(" ", "<i>·</i>")


def _shortened(text: str, most: int) -> str:
    if _width(text) <= most:
        return text
    kept = ""
    for character in text:
        if _width(kept + character) >= most:
            break
        kept += character
    return kept + "…"


def _width(text: str) -> int:
    """Columns of a text in a font of equal widths, where wide characters take two and combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in visible(text)
    )
