"""The code blocks of the Markdown pages, and the small world they run in."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from benchmarks.__main__ import ALL

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
RESULTS = ROOT / "benchmarks/RESULTS.md"
"""A page beside the book: its links and commands are looked up, and nothing in it runs."""
BLOCK = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
SAVED = re.compile(r"Save this as `([\w.]+)`[^`]*\Z")
NOT_RUN = re.compile(
    r"(#!.*\n(#SBATCH.*\n)*)?"
    r"# (Needs (a GPU|a cluster|SLURM|verl|the hub|data)|Takes (minutes|an hour|hours))"
)
"""How a block says, in its first line (of a script: below its head), that no test runs it: its names and flags are only
looked up."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    saved_as: str
    """The file that the page tells its reader to save it as; empty where there is none."""

    @property
    def run(self) -> bool:
        """Whether a test runs it."""
        return not NOT_RUN.match(self.text)


def commands(block: Block) -> list[list[str]]:
    """The project's commands in a shell block, as words; ``...`` for "the same as above" is left out."""
    found, line = [], ""
    for part in block.text.replace("\\\n", " ").replace("$SLURM_ARRAY_TASK_ID", "0").splitlines():
        line += part
        try:
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
        except ValueError:  # a quotation that goes on in the next line
            continue
        words = words[words[:1] == ["srun"] :]
        found += [words] if words[:1] == ["dense-rlhf"] or words[1:3] == ["-m", "benchmarks"] else []
        found += [words] if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks.") else []
        line = ""
    return found


def module_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """The module behind a command, and what it is given."""
    if words[0] != "dense-rlhf" and words[2] != "benchmarks":
        return words[2], words[3:]
    name, *arguments = words[1:] if words[0] == "dense-rlhf" else words[3:]
    return f"benchmarks.{ALL[name]}", arguments


def blocks(page: Path) -> list[Block]:
    """The page's code blocks, in order."""
    written = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            language=match["language"].strip(),
            text=match["text"],
            saved_as=saved[1] if (saved := SAVED.search(written[: match.start()].rstrip().removesuffix(":"))) else "",
        )
        for match in BLOCK.finditer(written)
    ]


def name_of(page: Path) -> str:
    """The page's path from docs/, for the name of a test."""
    return Path(os.path.relpath(page, ROOT / "docs")).as_posix()
