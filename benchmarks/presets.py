"""The presets, settings files that are installed with the package: ``dense-rlhf presets`` lists them, ``presets copy
NAME`` copies one."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.base.command_line import parse, refusals
from benchmarks.base.presets import PRESETS, about, preset_names
from benchmarks.base.text_columns import in_columns
from rlhf_core.names import nearest

NAME = "benchmarks.presets"


@dataclass(frozen=True, kw_only=True)
class PresetSettings:
    """List the settings files that are shipped, or copy one to change it: ``presets copy NAME --out FILE``.

    ``--config NAME`` of any command takes one as it is.
    """

    action: list[str] = field(default_factory=list)
    """Nothing, which lists them, or copy NAME."""
    out: str | None = None
    """File to write the copy to; NAME.yaml in this folder if not given."""
    overwrite: bool = False
    """Replace the file if there is one."""

    def __post_init__(self) -> None:
        if self.action and (self.action[0] != "copy" or len(self.action) != 2):
            raise ValueError(f"write presets, or presets copy NAME; got {' '.join(self.action)!r}")
        if self.action and self.action[1] not in preset_names():
            meant = nearest(self.action[1], preset_names()) or "."
            raise ValueError(f"no preset {self.action[1]!r}{meant} There are {', '.join(preset_names())}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    settings = parse(PresetSettings, NAME, argv, positional="action")
    with refusals(NAME):
        if settings.action:
            copy(settings.action[1], Path(settings.out or f"{settings.action[1]}.yaml"), overwrite=settings.overwrite)
        else:
            show()


def show() -> None:
    """Each preset and what it says of itself, on standard output."""
    for name in preset_names():
        print(in_columns(name, about(name), column=max(map(len, preset_names())) + 2))


def copy(name: str, out: Path, *, overwrite: bool) -> None:
    """Write the preset ``name`` to the file ``out``.

    Raises:
        FileExistsError: there is such a file, and ``overwrite`` is False.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already; choose another --out, or pass --overwrite true to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PRESETS / f"{name}.yaml", out)
    print(f"wrote {out}; use it with --config {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
