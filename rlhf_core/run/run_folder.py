"""The folder of a run: its settings, metrics and checkpoints, and how a run is resumed from it."""

import fcntl
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, final

from rlhf_core.files.disk_errors import told_where_unwritable
from rlhf_core.files.plain_files import flush, read_object, replace, unfinished
from rlhf_core.pages.run_record import METRICS, SAMPLES, SETTINGS
from rlhf_core.run.checkpoint import checkpoints, newest_complete
from rlhf_core.run.loggers import JSONLines, drop_later

SKIPPED = "skipped.jsonl"
RECORDS = (METRICS, SAMPLES, SKIPPED)


@final
class RunFolder:
    """A folder that one run writes into."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def begun(self) -> bool:
        """Whether a run was started here."""
        return (self.path / SETTINGS).is_file()

    def require_free(self) -> None:
        """Raise FileExistsError if the folder holds anything already."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"fit: {self.path} is a file; out must name a new folder")
        if self.path.exists() and any(path.name != unfinished(SETTINGS) for path in self.path.iterdir()):
            way_out = " (resume=True goes on with the run in it)" if self.begun else ""
            raise FileExistsError(
                f"fit: the folder {self.path} is not empty; give a new one, nothing is overwritten{way_out}"
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The right to write here, for as long as this process lives.

        Raises:
            FileExistsError: another process has it.
        """
        with told_where_unwritable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of a new run."""
        replace(self.path / SETTINGS, (json.dumps(settings, indent=2, allow_nan=False) + "\n").encode())

    def settings(self) -> dict[str, Any]:
        """The settings that ``begin`` recorded; raises ValueError if they cannot be read."""
        found = read_object(self.path / SETTINGS)
        due = {"first_step": int, "trained": bool, "models": dict}
        wrong = [name for name, kind in due.items() if type(found.get(name)) is not kind]
        if wrong:
            said = ", ".join(f"{name} is {shortened(found.get(name))}" for name in wrong)
            raise ValueError(f"{self.path / SETTINGS} is not what a run of this version writes: {said}")
        return found

    def newest_checkpoint(self, why_not: Callable[[Path], str]) -> Path | None:
        """The newest checkpoint for which ``why_not`` gives no reason. Newer ones are reported with the reason and
        renamed, so that the run can write them again; nothing is deleted.

        Raises:
            ValueError: there are checkpoints, and none can be used.
        """
        newest, passed_over = newest_complete(self.path, why_not)
        if not passed_over:
            return newest
        said = "; ".join(passed_over)
        if newest is None:
            raise ValueError(
                f"{self.path}: no checkpoint can be used ({said}). Put one right, or move all of them away to take the "
                "run's steps again from the first"
            )
        for folder in checkpoints(self.path)[: len(passed_over)]:
            os.replace(folder, _free_name(folder.with_name(f"{folder.name}.broken")))
        words = f"{self.path}: going on from {newest.name}; set aside as *.broken: {said}"
        warnings.warn(words, RuntimeWarning, stacklevel=2)
        return newest

    def cut(self, step: int) -> None:
        """Drop the records of later steps than ``step``, which are taken again, and a last line that was cut short.

        Raises:
            ValueError: a record file that is not what a run writes.
        """
        for path in self._records():
            drop_later(path, step)

    def record(self, name: str) -> JSONLines:
        """One of the record files, to append to."""
        return JSONLines(self.path / name, mode="append")

    def flush(self) -> None:
        """Flush the records to disk, so that no checkpoint exists without them."""
        for path in self._records():
            with told_where_unwritable(path):
                flush(path)

    def _records(self) -> Iterator[Path]:
        return (self.path / name for name in RECORDS if os.path.lexists(self.path / name))


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(f"fit: another process works in {path}; wait for its end") from None


def _free_name(path: Path) -> Path:
    """``path``, or the first of path-2, path-3 ... where nothing stands."""
    names = (path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000)))
    return next(name for name in names if not name.exists())
