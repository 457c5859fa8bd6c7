"""Heat maps of credit in the terminal."""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from rlhf_core.pages.document import visible
from rlhf_core.pages.heat_map import CreditMap, shades


def terminal(examples: Sequence[CreditMap]) -> Group:
    """The same heat map as the page's, for rich; text is never read as markup."""
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
