"""The command line of every script: a flag for every field of a dataclass, or a YAML file with them.

A command file imports nothing heavy at its top: it holds the dataclass of its settings and ``main(argv)``, which calls
:func:`parse` and checks what can be checked. Only then, inside :func:`refusals`, does ``main`` import the module of a
room that does the work, so that ``--help``, a typo and a wrong value are answered at once.
"""

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, final, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from benchmarks.base.flag_errors import Line, as_typed, explained, in_flags
from benchmarks.base.flag_help import Sections, full_help, short_help
from benchmarks.base.flags import flags_of, groups_of
from benchmarks.base.presets import config_path
from rlhf_core.run.closed_stdout import make_lasting
from rlhf_core.run.freed_memory import keep_freed_memory

CONSOLE_SCRIPT = "dense-rlhf"
Settings = TypeVar("Settings")


@final
class CommandParser(ArgumentParser):
    """A parser whose errors are one line, whose help is short, and whose ``--config`` takes the name of a preset.

    argparse can change its messages only by overriding methods, hence the inheritance.
    """

    sections: Sections = MappingProxyType({})
    """Titles in the help, and the settings under each."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse's; flags may be written with hyphens, and ``--help all`` lists every setting."""
        words = [_with_underscores(word) for word in (sys.argv[1:] if args is None else args)]
        if asked := {"-h", "--help"} & set(words):
            after = words[words.index(asked.pop()) + 1 :][:1]
            self.exit_with(full_help(self, self.sections) if after == ["all"] else short_help(self, self.sections))
        try:
            words = _with_presets(words)
        except ValueError as error:
            self.refuse(error)
        return super().parse_args(words, *more, **options)

    def format_help(self, *_: object) -> str:
        """The short help."""
        return short_help(self, self.sections)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2 and one line; parsers inside this one raise, as jsonargparse wants it."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.refuse(explained(message, self._line()))

    def refuse(self, reason: Exception | str) -> NoReturn:
        """End with status 2 and the reason; settings that it begins with are named as flags."""
        self._end(2, in_flags(str(reason), self._line()))

    def fail(self, reason: Exception) -> NoReturn:
        """End with status 1 and the reason why something went wrong on the way, its settings written as flags."""
        self._end(1, as_typed(str(reason), flags_of(self)))

    def _end(self, status: int, said: str) -> NoReturn:
        self.exit(status, f"{self.prog}: error: {said.removeprefix('fit: ')}\n")  # a call that no command's user made
        raise AssertionError  # exit never returns, which its type does not say

    def _line(self) -> Line:
        return Line(given=getattr(self, "args", ()), flags=flags_of(self), groups=groups_of(self))

    def exit_with(self, text: str) -> NoReturn:
        """Print on standard output and end with status 0."""
        sys.stdout.write(text)
        sys.stdout.flush()
        raise SystemExit(0)


def command_line(
    settings: type,
    prog: str,
    *,
    summary: str | None = None,
    positional: str | None = None,
    sections: Sections = MappingProxyType({}),
) -> CommandParser:
    """A parser with a flag for every field of the dataclass ``settings``, and ``--config`` for a YAML file of them.

    Later wins: ``--config NAME --steps 3`` overrides the preset's steps. ``prog`` is the command's module, as
    ``benchmarks.throughput``. The description is ``summary``, or the class's docstring; each field's docstring is its
    help. ``positional`` names a field, a text or a list of texts, that is given as words without a flag.
    ``sections`` puts settings under titles in the help.
    """
    make_lasting()
    keep_freed_memory()  # here all commands meet, before anything is loaded
    warnings.formatwarning = _one_line  # type: ignore[assignment]  # it names the arguments it has no use for
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    about = summary or (settings.__doc__ or "").strip()
    parser = CommandParser(prog=called_as(prog), description=about, allow_abbrev=False)
    parser.sections = sections
    parser.add_argument("--config", action="config", help="a preset or a YAML file")
    parser.add_class_arguments(settings, skip={positional} if positional else None)
    if positional:
        _add_words(parser, settings, positional)
    return parser


def parse(
    settings: type[Settings],
    prog: str,
    argv: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    positional: str | None = None,
    sections: Sections = MappingProxyType({}),
) -> Settings:
    """``settings`` filled from ``argv`` (default: the process's own); bad input ends the process with the reason.

    ``defaults`` stand in for those of the class; ``positional`` and ``sections`` as for :func:`command_line`.
    """
    parser = command_line(settings, prog, positional=positional, sections=sections)
    parser.set_defaults(dict(defaults or {}))
    try:
        chosen = parser.instantiate(parser.parse_args(argv))
        return settings(**{name: chosen[name] for name in inspect.signature(settings).parameters})
    except ValueError as error:
        parser.refuse(error)


@contextmanager
def refusals(prog: str, settings: type | None = None) -> Iterator[None]:
    """Turn a ValueError or OSError inside the block into one line on standard error and exit status 2. With the
    dataclass ``settings``, those that the line writes as Python takes them are named as flags."""
    try:
        yield
    except (ValueError, OSError) as error:
        said = as_typed(f"{error}", flags_of(command_line(settings, prog))) if settings else f"{error}"
        print(f"{called_as(prog)}: error: {said}", file=sys.stderr)
        raise SystemExit(2) from error


def called_as(prog: str) -> str:
    """How the user calls the command, as ``dense-rlhf prepare`` or ``python -m benchmarks.prepare``."""
    called = Path(sys.argv[0])
    if called.stem != CONSOLE_SCRIPT and called.parts[-2:] != ("benchmarks", "__main__.py"):
        return f"python -m {prog}"
    _, *further = prog.split()
    return " ".join([program(), *sys.argv[1:2], *further])  # as it was typed: a module may have another name


def _one_line(message: Warning | str, *_: object) -> str:
    """A warning as a command says it: whoever types a command wants no line of our code with it."""
    return f"warning: {message}\n"


def program() -> str:
    """The words that list the commands: ``dense-rlhf`` or ``python -m benchmarks``."""
    return CONSOLE_SCRIPT if Path(sys.argv[0]).stem == CONSOLE_SCRIPT else "python -m benchmarks"


def _with_underscores(word: str) -> str:
    """--card-gib is --card_gib; the value after "=" stays as it is."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _with_presets(words: Sequence[str]) -> list[str]:
    """The words, with the file behind each ``--config NAME``; raises ValueError for one that is not there."""
    found = list(words)
    for at, word in enumerate(words):
        if word == "--config" and at + 1 < len(words):
            found[at + 1] = str(config_path(words[at + 1]))
        elif word.startswith("--config="):
            found[at] = f"--config={config_path(word.partition('=')[2])}"
    return found


def _add_words(parser: ArgumentParser, settings: type, name: str) -> None:
    """Add a field of ``settings`` that is given without a flag, with its annotation, docstring and default."""
    alone = ArgumentParser()
    alone.add_class_arguments(settings)
    (field,) = (flag for flag in flags_of(alone) if flag.name == name)
    several = get_origin(field.kind) is list
    kind = get_args(field.kind)[0] if several else field.kind
    if field.required:
        parser.add_argument(name, nargs="+" if several else None, type=kind, help=field.help)
    else:
        parser.add_argument(name, nargs="*" if several else "?", type=kind, help=field.help, default=field.default)
