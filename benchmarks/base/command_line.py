"""The command line of every script: a flag for every field of a dataclass, and a YAML file of them."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from rlhf_core.run.closed_stdout import make_lasting

PRESETS = Path(__file__).parents[1] / "presets"

Settings = TypeVar("Settings")


def command_line(settings: type, prog: str, *, summary: str | None = None) -> ArgumentParser:
    """A parser with a flag for every field of the dataclass ``settings``, and ``--config`` for a YAML file of them.

    Later wins: ``--config FILE --steps 3`` overrides the file's steps. The description is ``summary``, or the class's
    docstring; each field's docstring is its help.
    """
    make_lasting()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"python -m {prog}", description=summary or (settings.__doc__ or "").strip())
    parser.add_argument(
        "--config", action="config", help=f"a YAML file with any of the flags below, nested; presets lie in {PRESETS}"
    )
    parser.add_class_arguments(settings)
    return parser


def parse(
    settings: type[Settings], prog: str, argv: list[str] | None = None, *, defaults: Mapping[str, Any] | None = None
) -> Settings:
    """``settings`` filled from ``argv`` (default: the process's own); bad input ends the process with the reason.

    ``defaults`` stand in for those of the class.
    """
    parser = command_line(settings, prog)
    parser.set_defaults(dict(defaults or {}))
    try:
        chosen = parser.instantiate(parser.parse_args(argv))
        return settings(**{name: chosen[name] for name in inspect.signature(settings).parameters})
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
