"""What every script shares: one command line, a record of the run, and a folder that is never overwritten unasked."""

import dataclasses
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from rlhf_core.distributed import require_one_process
from rlhf_core.files.disk_errors import told_where_unwritable
from rlhf_core.files.plain_files import read_object
from rlhf_core.run.lasting_output import make_lasting

RECORD = "run.json"
PRESETS = Path(__file__).parents[1] / "presets"
PACKAGES = ("rlhf_core", "redistributors", "models", "benchmarks")
RECORDED_PACKAGES = ("torch", "transformers", "numpy", "scipy", "dense-rlhf")

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
        return settings(**{field.name: chosen[field.name] for field in dataclasses.fields(settings)})  # type: ignore[arg-type]
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def jsonable(value: object) -> Any:
    """Dataclasses, tuples, paths and sets as plain JSON values, so that what is compared is what is read back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot record a {type(value).__name__}: {value!r}")


def run_record(settings: object, datasets: Mapping[str, str], *, made_by: str) -> dict[str, Any]:
    """What is needed to repeat a run: settings, command, versions, git state, and a fingerprint per data set.

    ``made_by`` names the kind of folder the record will stand in: only the same kind of script ever deletes it.
    """
    return {
        "made_by": made_by,
        "settings": jsonable(settings),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "git": git_state(Path(__file__).parents[2]),
        "datasets": dict(datasets),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the repository whose top is ``folder`` and whether the packages' files differ from it; else None."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        top = git("rev-parse", "--show-toplevel")
    except FileNotFoundError:  # no git on this machine
        return {"commit": None, "changed": None}
    if top is None or Path(top).resolve() != folder.resolve():
        return {"commit": None, "changed": None}
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", *PACKAGES))}


def fingerprint(parts: Iterable[str | Path]) -> str:
    """SHA-256 over texts and file contents, in order; each is length-prefixed, so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def differences(old: object, new: object, name: str = "") -> list[str]:
    """Every place where two JSON values differ, as "a.b: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key, "absent"), new.get(key, "absent"), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


def claim_folder(folder: Path, record: Mapping[str, Any], *, overwrite: bool, may_change: Collection[str] = ()) -> None:
    """Make ``folder`` this run's own and write its ``run.json``.

    A folder that is new or empty is taken. One whose ``run.json`` holds the same data sets and settings is resumed:
    nothing in it is deleted (the settings ``out``, ``overwrite`` and those in ``may_change`` are free to differ). With
    ``overwrite``, a folder made by the same kind of script is deleted first; nothing else is ever deleted.

    Raises:
        FileExistsError: the folder holds anything else, or another run's settings (every difference is named).
    """
    require_one_process()
    require_claimable(folder, record, overwrite=overwrite, may_change=may_change)
    previous = folder / RECORD
    if previous.is_file() and overwrite:
        shutil.rmtree(folder)
    elif previous.is_file():
        _require_same(folder, "datasets", record["datasets"], may_change)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(previous, record)


def require_claimable(
    folder: Path, record: Mapping[str, Any], *, overwrite: bool, may_change: Collection[str] = ()
) -> None:
    """What :func:`claim_folder` will refuse whatever the data are, checked before anything is loaded or trained.

    Raises:
        FileExistsError: as there.
    """
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
        if not is_free(folder) and not settings.overwrite:
            raise FileExistsError(f"{folder} is not empty; choose another --out, or pass --overwrite true")
        claim_folder(folder, run_record(settings, {}, made_by=name), overwrite=settings.overwrite)
    except (FileExistsError, ValueError) as error:
        sys.exit(f"python -m {prog}: error: {error}")
    return folder


def is_free(folder: Path) -> bool:
    """Whether there is nothing at ``folder`` that could be lost."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def require_made_by(folder: Path, made_by: str) -> None:
    """Raise FileExistsError unless ``folder`` was made by this kind of script, and so may be resumed or replaced."""
    if not (folder / RECORD).is_file():
        raise FileExistsError(f"{folder} is not empty and holds no {RECORD}, so it is not ours; choose another --out")
    maker = read_record(folder).get("made_by", "another version or script")
    if maker != made_by:
        raise FileExistsError(f"{folder} was made by {maker}, not by {made_by}; choose another --out")


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


def _require_same(folder: Path, part: str, value: Mapping[str, Any], may_change: Collection[str]) -> None:
    """Raise FileExistsError, naming every difference, unless the folder's record holds the same in ``part``."""
    earlier = read_record(folder, part)
    free = {"out", "overwrite", *may_change}
    old, new = ({name: item for name, item in some.items() if name not in free} for some in (earlier[part], value))
    changed = differences(old, new, part)
    if changed:
        raise FileExistsError(
            f"{folder} holds a run with other {part} ({'; '.join(changed)}); "
            "choose another --out, or pass --overwrite true to delete that run"
        )


def write_json(path: Path, value: object) -> None:
    """Write through a temporary file beside it: after a crash the old or the new content is there, never half.

    Raises:
        OSError: the disk is full, or another fault of it; says which file, and the way out.
    """
    temporary = path.with_name(path.name + ".tmp")
    with told_where_unwritable(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
