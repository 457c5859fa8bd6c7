"""The parts of pages on runs: sections with links to them, samples, settings, recorded credit."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_core.pages import curves, heat_map
from rlhf_core.pages import health as health_table
from rlhf_core.pages.curves import number
from rlhf_core.pages.document import document, escaped, themed
from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.pages.run_record import as_number

CSS = (
    themed(":root", {"good": "#1a6b3c", "card": "#f5f6f8"}, {"good": "#7bd6a0", "card": "#1d2127"})
    + heat_map.CSS
    + curves.CSS
    + health_table.CSS
    + """
.lead { margin: 0 0 1rem; max-width: 48rem }
.over { margin: 1rem 0 -.6rem; font-weight: 600; font-size: .875rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0 0;
         padding: 0; list-style: none }
.tiles + .about { margin-top: .6rem }
.tiles li { background: var(--card); border-radius: 8px; padding: .5rem .8rem .6rem }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tiles span, .tiles small { color: var(--muted); font-size: .8125rem; display: block }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .875rem; margin: .6rem 0 0 }
a { color: inherit; text-underline-offset: 2px } h2 { margin-top: 2.2rem }
.pairs { display: grid; gap: 1rem } .pair { background: var(--card); border-radius: 8px; padding: .7rem .9rem }
.pair .asked { color: var(--muted); margin: 0 0 .5rem; white-space: pre-wrap }
.pair dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .6rem 1.5rem;
           margin: 0 }
.pair dl > div { min-width: 0 } .pair dt { color: var(--muted); font-size: .8125rem } .pair dd { margin: 0;
           white-space: pre-wrap } .pair .end { color: var(--muted) }
pre { white-space: pre-wrap; background: var(--card); border-radius: 8px; padding: .7rem .9rem; font-size: .8125rem }
details > summary { cursor: pointer }
.word { display: inline-block; max-width: 100% }
@media (max-width: 40rem) {
.stacks td[data-is="should be"] { grid-column: 1 / -1 }
.settings tr { display: block; border-bottom: 1px solid var(--line); padding: .3rem 0 }
.settings th, .settings td { display: block; border: 0; padding: 0 }
}
"""
)


def unbroken(text: str) -> str:
    """``text`` escaped, with each flag on one line where it fits: a browser would break ``--ppo.learning_rate`` after a
    hyphen."""
    return re.sub(r"(?<!\S)--\S+", lambda word: f'<span class="word">{word[0]}</span>', escaped(text))


def sectioned(title: str, about: str, top: str, sections: Mapping[str, str]) -> str:
    """A whole HTML document: ``title`` and ``about`` are plain text, ``top`` HTML under them, and then the sections
    that are not empty, by heading, with links to each."""
    shown = {heading: body for heading, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(heading)}">{escaped(heading)}</a>' for heading in shown)
    parts = [f'<p class="lead">{unbroken(about)}</p>', top, f"<nav>{links}</nav>"]
    parts += [
        f'<section><h2 id="{_anchor(heading)}">{escaped(heading)}</h2>{body}</section>'
        for heading, body in shown.items()
    ]
    return document(title, "\n".join(parts), CSS)


def _anchor(heading: str) -> str:
    return escaped(heading.lower().replace(" ", "-"))


def sample_heading(sample: Mapping[str, Any], label: str = "") -> str:
    """Where a sample stands, and what it scored."""
    where, length = label or f"step {sample['step']}", as_number(sample.get("length"))
    return (
        f"<dt>{escaped(where)}: score <b>{number(as_number(sample.get('score')))}</b>, "
        f"{number(length)} {'token' if length == 1 else 'tokens'}</dt>"
    )


def sample_text(sample: Mapping[str, Any]) -> str:
    """A response; where it was cut off, an ellipsis."""
    cut = "" if sample.get("finished", True) else '<span class="end" title="cut at its longest length">\u00a0…</span>'
    return f"<dd>{escaped(str(sample.get('response', '')).strip(' '))}{cut}</dd>"


def settings_table(values: Mapping[str, Any]) -> str:
    """Names and values as an HTML table."""
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(str(value))}</td></tr>' for name, value in values.items()
    )
    return f'<table class="plain settings"><tbody>{rows}</tbody></table>'


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves as ("kl.kind", "k1"), without the measurement of the models, which people do not read."""
    for name, value in values.items():
        if isinstance(value, dict) and name != "models":
            yield from flat(value, f"{prefix}{name}.")
        elif name != "models":
            yield f"{prefix}{name}", value


def noted(maps: list[CreditMap]) -> list[dict[str, Any]]:
    """Credit as plain JSON values."""
    return [dataclasses.asdict(one) for one in maps]


def noted_maps(report: Mapping[str, Any]) -> list[CreditMap]:
    """The responses with credit that a report holds.

    Raises:
        ValueError: the record does not hold credit.
    """
    try:
        return [_credit_map(one) for one in report.get("credit", ())]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"report.json: its credit is damaged ({error}); move the file away") from error


def _credit_map(values: Mapping[str, Any]) -> CreditMap:
    """JSON has lists where a map has tuples."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {label: frozen(item) for label, item in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return CreditMap(**{name: frozen(value) for name, value in values.items()})
