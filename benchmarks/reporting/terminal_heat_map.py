"""Heat maps of credit in the terminal: colours, or numbers if there are no colours."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_core.pages.document import visible
from rlhf_core.pages.heat_map import CreditMap, coloured, conserves

LABEL = 24
"""Widest label, in characters; a longer one wraps."""
PROMPT = 240
"""Characters of a prompt that are shown."""


def show(examples: Sequence[CreditMap], console: Console) -> None:
    """Print the heat maps: in colour where ``console`` has any, else with numbers, as in a log file."""
    console.print(terminal(examples) if console.color_system else in_numbers(examples, console.width))


def terminal(examples: Sequence[CreditMap]) -> Group:
    """The same heat maps as a page's, for rich: the response once for each method, coloured. Text is never read as
    markup."""
    return _maps(examples, _coloured_tokens)


def in_numbers(examples: Sequence[CreditMap], width: int) -> Group:
    """The response once for each method, and after each token its score, in lines of at most ``width`` characters, none
    of which ends between a token and its score."""
    return _maps(examples, partial(_numbered_tokens, width=width))


def _maps(examples: Sequence[CreditMap], tokens: Callable[[CreditMap], dict[str, Text]]) -> Group:
    parts: list[RenderableType] = []
    for example in examples:
        shown = _shortly(example.prompt)
        shown += "" if example.read is None else f" (the model read: {_shortly(example.read) or 'nothing'})"
        rows = [_rows(example, tokens(example))] if example.rows or example.reference_rows else []
        parts += [Text(f"{shown} … score {example.score:+z.3f}", style="dim"), *rows, Text()]
    return Group(*parts)


def _shortly(prompt: str) -> str:
    text = visible(prompt)
    return text if len(text) <= PROMPT else f"{text[: PROMPT // 2]} … {text[-PROMPT // 2 :]}"


def _rows(example: CreditMap, tokens: dict[str, Text]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(max_width=LABEL, overflow="fold", justify="right")
    table.add_column(ratio=1, overflow="fold")
    table.add_column(no_wrap=True, justify="right", style="dim")
    for label, values in {**example.rows, **example.reference_rows}.items():
        table.add_row(
            Text(visible(label), style="bold" if label in example.rows else "italic"),
            tokens[label],
            Text(_total(example, label, values)),
        )
    return table


def _total(example: CreditMap, label: str, values: Sequence[float]) -> str:
    total = math.fsum(values)
    conserved = label not in example.rows or conserves(total, example.score)
    return f"Σ {total:+z.3f}" + ("" if conserved else " ≠ score")


def _coloured_tokens(example: CreditMap) -> dict[str, Text]:
    lines = {}
    for label, tones in coloured(example).items():
        lines[label] = Text()
        for token, tone in zip(example.tokens, tones, strict=True):
            lines[label].append("" if token[:1].isspace() or not lines[label] else " ")
            lines[label].append(visible(token), style=f"{tone.text} on {tone.background}")
    return lines


def _numbered_tokens(example: CreditMap, width: int) -> dict[str, Text]:
    rows = {**example.rows, **example.reference_rows}
    label = min(LABEL, max((cell_len(visible(label)) for label in rows), default=0))
    total = max((cell_len(_total(example, name, values)) for name, values in rows.items()), default=0)
    room = width - label - total - len("  ")
    return {label: Text(_lines(_pairs(example.tokens, values), room)) for label, values in rows.items()}


def _pairs(tokens: Sequence[str], values: Sequence[float]) -> list[str]:
    """Each token with its score, and a comma after all but the last."""
    pairs = [f"{visible(token).strip()} {value:+z.3g}" for token, value in zip(tokens, values, strict=True)]
    return [*(f"{pair}," for pair in pairs[:-1]), *pairs[-1:]]


def _lines(pairs: Sequence[str], room: int) -> str:
    """The pairs in lines of at most ``room`` cells; only a pair that is longer itself is on a longer line."""
    lines = [""]
    for pair in pairs:
        line = f"{lines[-1]} {pair}".strip()
        if lines[-1] and cell_len(line) > room:
            lines.append(pair)
        else:
            lines[-1] = line
    return "\n".join(lines)
