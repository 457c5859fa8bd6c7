"""``--help`` on two screens: a line or two for each setting of the command itself, and one for each nested group.

``--help all`` has every setting and every sentence. The text has no colour, and fits the terminal's width.
"""

import json
import re
from collections.abc import Mapping, Sequence

from jsonargparse import ArgumentParser

from benchmarks.base.flags import Flag, flags_of, groups_of, placeholder
from benchmarks.base.presets import presets_for
from benchmarks.base.text_columns import in_columns, wrapped

Sections = Mapping[str, Sequence[str]]
"""Titles, and the settings under each."""
COLUMN = 24
"""Where the second column begins."""
SENTENCE = re.compile(r".+?[.;](?=\s|$)", re.DOTALL)


def short_help(parser: ArgumentParser, sections: Sections) -> str:
    """The settings of the command itself, one sentence each, and the nested groups by name.

    ``sections`` puts settings under titles of their own; what none of them names stands under "settings".
    """
    nested, flags = groups_of(parser), flags_of(parser)
    top = [flag for flag in flags if not flag.prefix and flag.name not in nested]
    pages = [_head(parser), *_titled(top, sections, short=True)]
    if nested:
        counts = {name: sum(flag.prefix == name for flag in flags) for name in nested}
        rows = [_row(f"--{name}.*", f"{_title(kind)} ({counts[name]} settings)") for name, kind in nested.items()]
        pages.append(_section("nested settings, listed by --help all", rows))
    return "\n".join([*pages, _section("more", _common(parser))])


def full_help(parser: ArgumentParser, sections: Sections) -> str:
    """Every setting with its full description; ``sections`` as for :func:`short_help`."""
    nested, flags = groups_of(parser), flags_of(parser)
    pages = [_head(parser), *_titled([flag for flag in flags if not flag.prefix], sections, short=False)]
    for name, kind in nested.items():
        inside = [_entry(flag, flag.help) for flag in flags if flag.prefix == name]
        pages.append(_section(f"--{name}.*: {_title(kind)}", inside))
    return "\n".join([*pages, _section("more", _common(parser))])


def _titled(flags: Sequence[Flag], sections: Sections, *, short: bool) -> list[str]:
    """A section for each title, and one for the rest."""
    titles = {name: title for title, names in sections.items() for name in names}
    found: dict[str, list[str]] = {title: [] for title in ("settings", *sections)}
    for flag in sorted(flags, key=lambda flag: not flag.positional):
        said = first_sentence(flag.help) if short else flag.help
        found[titles.get(flag.name, "settings")].append(_entry(flag, said))
    return [_section(title, rows) for title, rows in found.items() if rows]


def first_sentence(text: str) -> str:
    """Up to the first full stop or semicolon, which becomes a full stop."""
    plain = " ".join(text.split())
    found = SENTENCE.match(plain)
    return found[0].rstrip(";.") + "." if found else plain


def _head(parser: ArgumentParser) -> str:
    words = " ".join(_word(flag) for flag in flags_of(parser) if flag.positional)
    usage = " ".join(filter(None, ["usage:", parser.prog, words, "[--config NAME] [--SETTING VALUE ...]"]))
    return f"{usage}\n\n{wrapped(parser.description or '')}\n"


def _word(flag: Flag) -> str:
    return flag.name.upper() if flag.required else f"[{flag.name.upper()}]"


def _common(parser: ArgumentParser) -> list[str]:
    presets = ", ".join(presets_for({flag.name.partition(".")[0] for flag in flags_of(parser)}))
    source = f"a preset ({presets}) or a YAML file" if presets else "a YAML file"
    return [
        _row("--config NAME", f"take settings from {source}; flags after it override it"),
        _row("--print_config", "print the settings as YAML and exit"),
        _row("--help all", "all settings, with their full descriptions"),
    ]


def _section(title: str, rows: Sequence[str]) -> str:
    return f"{title}:\n" + "".join(rows)


def _entry(flag: Flag, said: str) -> str:
    name = flag.name.upper() if flag.positional else f"--{flag.name} {placeholder(flag.kind)}"
    return _row(name, " ".join(filter(None, [" ".join(said.split()), _default(flag)])))


def _default(flag: Flag) -> str:
    if flag.required:
        return "(required)"
    if flag.default in (None, "", []) or isinstance(flag.default, Mapping) or hasattr(flag.default, "__dict__"):
        return ""
    shown = flag.default if isinstance(flag.default, str) else json.dumps(flag.default, default=str)
    return f"(default: {shown})"


def _row(left: str, right: str) -> str:
    return in_columns(f"  {left}", right, column=COLUMN) + "\n"


def _title(kind: type) -> str:
    return first_sentence(kind.__doc__ or kind.__name__).rstrip(".")
