"""The heat map in the terminal: text is never markup or a control code, and colour is used where it may be."""

from rich.console import Console

from benchmarks.reporting.terminal_heat_map import terminal
from rlhf_core.pages.heat_map import CreditMap

HOSTILE = ("\x1b[31m", "\x00", "[bold red]", "\u202e", "\n", "a")


def example(tokens, prompt, score):
    rows = {"sparse": (0.0,) * (len(tokens) - 1) + (score,), "uniform": (score / len(tokens),) * len(tokens)}
    return CreditMap(prompt=prompt, tokens=tuple(tokens), score=score, rows=rows)


def test_terminal_never_reads_markup_or_passes_control_codes():
    console = Console(width=200, record=True, force_terminal=False, no_color=True)
    with console.capture() as captured:
        console.print(terminal([example(HOSTILE, "\x07 [link]", 1.6)]))
    text = captured.get()
    assert all(shown in text for shown in ("[bold red]", "[link]", "Σ +1.600"))
    assert not any(code in text for code in "\x1b\x00\u202e")


def test_terminal_uses_colour_where_it_may():
    console = Console(width=200, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        console.print(terminal([example(("a", "b"), "p", 2.0)]))
    assert "48;2;33;102;172" in captured.get()
