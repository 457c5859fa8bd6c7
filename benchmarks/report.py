"""Write a page on finished or running runs: ``dense-rlhf report RUN...``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.base.command_line import parse, refusals
from rlhf_core.pages.document import is_ours
from rlhf_core.pages.run_record import PAGE, SETTINGS

NAME = "benchmarks.report"


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Write a page on a run, a comparison, or any set of run folders, finished or going on. One run gives its curves,
    texts, credit and health figures; several give arms side by side, with intervals over seeds."""

    runs: list[str]
    """Folders of runs, or with runs anywhere in them."""
    out: str | None = None
    """The file to write; without it report.html in the folder that all of them are in."""

    def __post_init__(self) -> None:
        wrong = [folder for folder in self.runs if not Path(folder).is_dir()]
        if wrong:
            raise ValueError(f"runs: no folder {', '.join(wrong)}; name folders that fit or a comparison wrote into")
        path = self.place()
        if path.exists() and not (path.is_file() and is_ours(path.read_text(encoding="utf-8", errors="replace"))):
            raise ValueError(f"out: {path} is not a page that this command wrote; name another file")

    def place(self) -> Path:
        """The file to write; raises ValueError where the folders have only the root in common."""
        if self.out is not None:
            return Path(self.out)
        if len(self.runs) == 1:
            return Path(self.runs[0]) / PAGE
        shared = Path(os.path.commonpath([Path(folder).resolve() for folder in self.runs]))
        if shared == Path(shared.anchor):
            raise ValueError("out: these folders have only the root in common; name the file to write")
        return shared / PAGE


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; where there is no run, the process ends with the reason."""
    settings = parse(ReportSettings, NAME, argv, positional="runs")
    with refusals(NAME):
        count = write([Path(folder) for folder in settings.runs], settings.place())
    print(f"written to {settings.place()}: {count} run{'' if count == 1 else 's'}")


def write(folders: Sequence[Path], path: Path) -> int:
    """Write the page; how many runs are on it.

    Raises:
        ValueError: a folder without runs, or a damaged file of one; names it.
    """
    if len(folders) == 1 and (folders[0] / SETTINGS).is_file():
        from rlhf_core.files.plain_files import replace
        from rlhf_core.pages import run_page
        from rlhf_core.pages.run_record import read_run

        replace(path, run_page.page(read_run(folders[0])).encode())
        return 1
    from benchmarks.reporting import comparison_page

    return comparison_page.write(folders, path)


if __name__ == "__main__":
    main()
