"""Heat maps of credit in the terminal."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_core.pages.document import visible
from rlhf_core.pages.heat_map import CreditMap, coloured, conserves
from rlhf_core.pages.shades import Shade

LABEL = 24
"""Widest label, in characters; a longer one wraps."""
PROMPT = 240
"""Characters of a prompt that are shown."""


def terminal(examples: Sequence[CreditMap]) -> Group:
    """The same heat maps as a page's, for rich: the response once for each method. Text is never read as markup."""
    parts: list[RenderableType] = []
    for example in examples:
        prompt = visible(example.prompt)
        shown = prompt if len(prompt) <= PROMPT else f"{prompt[: PROMPT // 2]} … {prompt[-PROMPT // 2 :]}"
        rows = [_rows(example)] if example.rows or example.reference_rows else []
        parts += [Text(f"{shown} … score {example.score:+.3f}", style="dim"), *rows, Text()]
    return Group(*parts)


def _rows(example: CreditMap) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(max_width=LABEL, overflow="fold", justify="right")
    table.add_column(ratio=1, overflow="fold")
    table.add_column(no_wrap=True, justify="right", style="dim")
    tones = coloured(example)
    for label, values in {**example.rows, **example.reference_rows}.items():
        total = math.fsum(values)
        conserved = label not in example.rows or conserves(total, example.score)
        table.add_row(
            Text(visible(label), style="bold" if label in example.rows else "italic"),
            _tokens(example.tokens, tones[label]),
            Text(f"Σ {total:+.3f}" + ("" if conserved else " ≠ score")),
        )
    return table


def _tokens(tokens: Sequence[str], tones: Sequence[Shade]) -> Text:
    line = Text()
    for token, tone in zip(tokens, tones, strict=True):
        line.append("" if token[:1].isspace() or not line else " ")
        line.append(visible(token), style=f"{tone.text} on {tone.background}")
    return line
