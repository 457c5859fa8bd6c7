"""A page on runs that have finished or are going on: ``python -m benchmarks.report RUN...``."""

import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Write report.html on a run, a comparison, or any set of run folders, finished or going on.

A single run gets its curves, texts, credit and health figures. Several get their arms side by side, with intervals
over seeds. The page is one file that needs no network.

  python -m benchmarks.report runs/mine
  python -m benchmarks.report runs/first runs/second --out both.html"""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; where there is no run, or no place for the page, the process ends with the reason."""
    parser = ArgumentParser(
        prog="python -m benchmarks.report", description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, or one with runs anywhere in it")
    parser.add_argument("--out", help="the file to write; by default report.html in the folder that all RUNs share")
    given = parser.parse_args(argv)
    folders = [Path(folder) for folder in given.runs]
    try:
        path = _place(folders, given.out)
        count = _written(folders, path)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"written to {path}: {count} run{'' if count == 1 else 's'}")


def _place(folders: Sequence[Path], out: str | None) -> Path:
    """Where the page goes.

    Raises:
        ValueError: a RUN that is no folder, or a file of that name that is no page of ours.
    """
    from rlhf_core.pages.document import is_ours
    from rlhf_core.pages.run_record import PAGE

    wrong = [str(folder) for folder in folders if not folder.is_dir()]
    if wrong:
        raise ValueError(f"no folder {', '.join(wrong)}; RUN is the folder that fit or a comparison wrote into")
    path = Path(out) if out else _shared(folders) / PAGE
    if path.exists() and not (path.is_file() and is_ours(path.read_text(encoding="utf-8", errors="replace"))):
        raise ValueError(f"{path} is not a page that this command wrote; name another file with --out")
    return path


def _shared(folders: Sequence[Path]) -> Path:
    """The folder that all of them are, or lie in."""
    if len(folders) == 1:
        return folders[0]
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if shared == Path(shared.anchor):
        raise ValueError("the folders have only the root in common; name the page with --out")
    return shared


def _written(folders: Sequence[Path], path: Path) -> int:
    """Write the page; how many runs are on it."""
    from rlhf_core.files.plain_files import replace
    from rlhf_core.pages import run_page
    from rlhf_core.pages.run_record import SETTINGS, read_run

    if len(folders) == 1 and (folders[0] / SETTINGS).is_file():
        replace(path, run_page.page(read_run(folders[0])).encode())
        return 1
    from benchmarks.reporting import comparison_page

    return comparison_page.write(folders, path)


if __name__ == "__main__":
    main()
