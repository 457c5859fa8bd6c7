"""The folder of a run: its record ``run.json``, and the rule that nothing is overwritten without ``--overwrite``."""

import platform
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.base.command_line import CONSOLE_SCRIPT, called_as
from benchmarks.base.folder_lock import held_folder
from benchmarks.base.json_files import jsonable, write_json
from benchmarks.base.out_folder import is_free, require_free
from rlhf_core.files.differences import differences
from rlhf_core.files.plain_files import read_object

RECORD = "run.json"
PACKAGES = ("rlhf_core", "redistributors", "models", "benchmarks")
RECORDED_VERSIONS = ("torch", "transformers", "numpy", "scipy", "dense-rlhf")


def run_record(settings: object, datasets: Mapping[str, str], *, made_by: str) -> dict[str, Any]:
    """Everything needed to repeat a run: settings, command, versions, git state, and a fingerprint per data set.

    ``made_by`` names the kind of folder the record will stand in: only the same kind of script ever deletes it.
    """
    return {
        "made_by": made_by,
        "settings": jsonable(settings),
        "command": command_words(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_VERSIONS}},
        "git": git_state(Path(__file__).parents[2]),
        "datasets": dict(datasets),
    }


def command_words() -> str:
    """The command of this process, to be typed again: that of ``python`` or of ``dense-rlhf``."""
    through_the_script = Path(sys.argv[0]).stem == CONSOLE_SCRIPT
    return shlex.join([CONSOLE_SCRIPT, *sys.argv[1:]] if through_the_script else ["python", *sys.orig_argv[1:]])


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the repository whose top is ``folder`` and whether the packages' files differ from it; else None."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    # a machine may have no git; a folder may lie in somebody else's repository
    top = git("rev-parse", "--show-toplevel") if shutil.which("git") else None
    if top is None or Path(top).resolve() != folder.resolve():
        return {"commit": None, "changed": None}
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", *PACKAGES))}


def read_record(folder: Path, *parts: str) -> dict[str, Any]:
    """The folder's ``run.json``, which holds an object under each of ``parts``; raises ValueError naming the file where
    it is damaged."""
    path = folder / RECORD
    try:
        record = read_object(path)
        wrong = [part for part in parts if not isinstance(record.get(part), dict)]
        if wrong:
            raise ValueError(f"there is no object under {', '.join(wrong)}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); move it, or its folder, away") from error
    return record


def claim_folder(folder: Path, record: Mapping[str, Any], *, overwrite: bool, may_change: Collection[str] = ()) -> None:
    """Make ``folder`` this run's own and write its ``run.json``.

    A folder that is new or empty is taken. One whose ``run.json`` holds the same data sets and settings is resumed:
    nothing in it is deleted (the settings ``out``, ``overwrite`` and those in ``may_change`` are free to differ). With
    ``overwrite``, a folder made by the same kind of script is deleted first; nothing else is ever deleted.

    Raises:
        FileExistsError: the folder holds anything else, or another run's settings (every difference is named).
    """
    from rlhf_core.distributed import require_one_process

    require_one_process()
    require_claimable(folder, record, overwrite=overwrite, may_change=may_change)
    if (folder / RECORD).is_file():
        if overwrite:
            shutil.rmtree(folder)
        else:
            _require_same(folder, "datasets", record["datasets"], may_change)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, record)


def require_claimable(
    folder: Path, record: Mapping[str, Any], *, overwrite: bool, may_change: Collection[str] = ()
) -> None:
    """Raise the FileExistsError of :func:`claim_folder` that is certain whatever the data are, before anything is
    loaded or trained."""
    if is_free(folder):
        return
    require_made_by(folder, record["made_by"])
    if not overwrite:
        _require_same(folder, "settings", record["settings"], may_change)


def measurement_folder(settings: Any, prog: str) -> Path:
    """Make ``settings.out`` the place of a new measurement by ``prog``, which no second one may replace unasked; a
    folder that is taken ends the process with the reason."""
    folder, name = Path(settings.out), prog.removeprefix("benchmarks.")
    try:
        require_free(settings)
        claim_folder(folder, run_record(settings, {}, made_by=name), overwrite=settings.overwrite)
    except (FileExistsError, ValueError) as error:
        sys.exit(f"{called_as(prog)}: error: {error}")
    return folder


@contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, to fill and then rename; it is removed if it is still there at the end. While it
    is filled this process holds it, so that :func:`remove_stale` leaves it alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        with held_folder(temporary) as held:
            if not held:
                raise FileExistsError(f"another process has taken {temporary}; start again")
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_stale(above: Path, name: str) -> None:
    """Remove what processes that were killed left in ``above`` of :func:`temporary_sibling`, of folders whose names
    match the pattern ``name``: those that no living process holds."""
    unfinished = re.compile(rf"\.{name}-[0-9a-f]{{8}}")
    found = [path for path in above.iterdir() if unfinished.fullmatch(path.name)] if above.is_dir() else []
    for path in found:
        with held_folder(path) as held:
            if held:
                shutil.rmtree(path, ignore_errors=True)


def require_made_by(folder: Path, made_by: str) -> None:
    """Raise FileExistsError unless ``folder`` was made by this kind of script, and so may be resumed or replaced."""
    if not (folder / RECORD).is_file():
        raise FileExistsError(f"{folder} is not empty and holds no {RECORD}, so it is not ours; choose another --out")
    maker = read_record(folder).get("made_by", "another version or script")
    if maker != made_by:
        raise FileExistsError(f"{folder} was made by {maker}, not by {made_by}; choose another --out")


def _require_same(folder: Path, part: str, value: Mapping[str, Any], may_change: Collection[str]) -> None:
    """Raise FileExistsError, naming every difference, unless the folder's record holds the same in ``part``."""
    earlier = read_record(folder, part)[part]
    if changed := differences(earlier, value, free={"out", "overwrite", *may_change}):
        raise FileExistsError(
            f"{folder} holds a run with other {part} ({'; '.join(changed)}); "
            "choose another --out, or pass --overwrite true to delete that run"
        )
