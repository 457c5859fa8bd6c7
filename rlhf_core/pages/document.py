"""A self-contained HTML document: one file, no script, nothing from a network, light and dark, any width.

What fills it comes as HTML fragments with CSS of their own. A fragment's author escapes every text with
:func:`escaped`.
"""

import html

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content security policy: inline styles, and nothing else, whatever a text may hold."""
SIGNS = {"\n": "⏎", "\t": "⇥", "\ufffd": "\ufffd"}
"""Characters shown by a sign of their own."""
OURS = '<meta name="generator" content="dense-rlhf">'
LIGHT = {"paper": "#ffffff", "ink": "#1a1a1a", "muted": "#595f69", "line": "#d5d9e0", "bad": "#b3122a"}
DARK = {"paper": "#15181d", "ink": "#e8eaed", "muted": "#a3abb8", "line": "#39404b", "bad": "#ff9a8a"}
"""Colours by the CSS variable that holds them. Every text colour reads on ``paper`` with a contrast of 4.5 and more."""


def themed(selector: str, light: dict[str, str], dark: dict[str, str]) -> str:
    """CSS that gives ``selector`` the variables ``--NAME``, light or dark as the reader's system asks for."""

    def variables(values: dict[str, str]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in values.items())

    return (
        f"{selector} {{ {variables(light)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ {selector} {{ {variables(dark)} }} }}\n"
    )


CSS = (
    themed(":root", LIGHT, DARK)
    + """
:root { color-scheme: light dark }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .4rem }
h2 { font-size: 1.1rem; line-height: 1.3; margin: 1.6rem 0 .4rem }
.about { color: var(--muted); margin: 0 0 1rem; max-width: 48rem }
"""
)


def document(title: str, body: str, css: str = "") -> str:
    """The whole document: ``title`` is plain text, ``body`` HTML, ``css`` what the body needs beside ``CSS``."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            OURS,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title)}</title><style>{CSS}{css}</style></head><body>",
            f"<h1>{escaped(title)}</h1>",
            body,
            "</body></html>",
            "",
        ]
    )


def is_ours(content: str) -> bool:
    """Whether :func:`document` made this file, so that a newer one may replace it."""
    return OURS in content[:1000]


def escaped(text: str) -> str:
    """``text`` escaped for HTML: it cannot become markup or control characters."""
    return html.escape(visible(text), quote=True)


def visible(text: str) -> str:
    """``text`` with every character that does not print (controls, bidirectional marks, ...) as its escape."""
    return "".join(
        SIGNS.get(c, c) if c.isprintable() or c in SIGNS else c.encode("unicode_escape").decode() for c in text
    )
