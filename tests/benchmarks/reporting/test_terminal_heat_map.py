"""The heat map in the terminal: text is never markup or a control code, and colour is used where it may be."""

import re
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.reporting.terminal_heat_map import in_numbers, show, terminal
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


@pytest.mark.parametrize("draw", [terminal, lambda shown: in_numbers(shown, 80), lambda shown: in_numbers(shown, 40)])
@pytest.mark.parametrize("width", [40, 80])
def test_nothing_is_cropped(draw, width):
    tokens = [f"word{place}" for place in range(60)]
    shown = example(tokens, "p " * 300, 1.6)
    shown = CreditMap(
        **{**vars(shown), "rows": {"a label that is far too long for any terminal": shown.rows["sparse"]}}
    )
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(draw([shown]))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    words = "".join(lines).split()
    assert all(token in "".join(words) for token in tokens)
    assert "Σ" in words


def test_a_log_file_gets_numbers():
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as captured:
        show([example(("a", " b"), "p", 2.0)], console)
    assert "a +0, b +2" in captured.get()
    assert "a +1, b +1" in captured.get()


@pytest.mark.parametrize("width", [60, 80, 81, 133])
@pytest.mark.parametrize("score", [2.0, -12.345678])
def test_no_line_ends_between_a_token_and_its_score(width, score):
    tokens = [f"{'w' * (place % 7)}{place}" for place in range(40)] + ["日本語", " two words"]
    whole = example(tokens, "p", score)
    lost = replace(whole, rows={"lost": (score,) * len(tokens)})  # its sum is another, which is said beside it
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        show([whole, lost], console)
    lines = [re.sub(r" +Σ.*", "", line)[len("uniform ") :].strip() for line in captured.get().splitlines()]
    shown = [line for line in lines if line and "…" not in line]
    assert len(shown) > 6
    assert [line for line in shown if not re.fullmatch(r"(.+? [+-][\d.e-]+(, |,$|$))+", line)] == []


def test_what_the_model_read_stands_beside_the_callers_own_prompt():
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as captured:
        show([replace(example(("a", "b"), "a river", 2.0), read="a <unk>")], console)
    assert "a river (the model read: a <unk>) … score +2.000" in captured.get()
