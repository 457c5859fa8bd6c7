"""Loggers of a run's metrics: JSON lines always, TensorBoard and Weights & Biases as extras.

Of several processes that train together, the first alone logs; a logger that another one makes writes nothing.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from textwrap import indent
from typing import Any, Literal, Protocol, runtime_checkable

from rlhf_core.distributed import writes
from rlhf_core.files.disk_errors import told_where_unwritable
from rlhf_core.files.plain_files import open_plain, replace
from rlhf_core.names import counted
from rlhf_core.plain_numbers import shown


@runtime_checkable
class Logger(Protocol):
    """Receives the metrics of every step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""
        ...

    def close(self) -> None:
        """Close the logger after the last step; whoever created it calls this."""
        ...


@runtime_checkable
class Rewinds(Protocol):
    """A logger that can go back to an earlier step, for a run that is resumed."""

    def rewind(self, step: int) -> None:
        """Drop what was logged after ``step``, or keep it and ignore those steps when they are logged again."""
        ...


@runtime_checkable
class LogsSamples(Protocol):
    """A logger that also shows texts."""

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Take the responses of the evaluation after ``step``, as ``samples.jsonl`` has them: each with its ``prompt``,
        ``response``, ``score``, ``length`` and ``finished``."""
        ...


class JSONLines:
    """Appends one JSON object per record to the file ``path``. With ``mode`` "new" it refuses a file that exists, so
    that nothing is ever mixed up or overwritten; "append" continues one.

    Raises:
        FileExistsError: the file exists, and ``mode`` is "new".
    """

    def __init__(self, path: Path, mode: Literal["new", "append"] = "new") -> None:
        if not writes():
            path, mode = Path(os.devnull), "append"
        if mode == "new" and path.exists():
            raise FileExistsError(f"{path} exists; choose another folder, or move that file away")
        self._path = path
        self._file = _to_append(path)

    def write(self, record: Mapping[str, object]) -> None:
        """One line, whole or not at all, at once, so that a killed run keeps what it had.

        Raises:
            ValueError: NaN, which JSON has not.
            OSError: the disk is full or faulty; names the file and says what to do.
        """
        left = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
        with told_where_unwritable(self._path):
            before = os.fstat(self._file.fileno()).st_size
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):  # what is not a regular file cannot be cut
                    self._file.truncate(before)
                raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one step; a value that is not finite is written as its name, for example "nan"."""
        self.write({"step": step, **{name: shown(value) for name, value in metrics.items()}})

    def rewind(self, step: int) -> None:
        """Drop the records of later steps, and a last line that was cut short; raises ValueError for other lines."""
        self._file.close()
        drop_later(self._path, step)
        self._file = _to_append(self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _to_append(path: Path) -> FileIO:
    """Open without a buffer, so that no half line can wait in it."""
    with told_where_unwritable(path):
        return path.open("ab", buffering=0)


def drop_later(path: Path, step: int) -> None:
    """Keep the lines of ``path`` up to those of ``step``; written whole or not at all.

    Raises:
        ValueError: a line that is not a record of a step, or what is not a regular file.
    """
    with open_plain(path) as file:
        *lines, _ = file.read().split(b"\n")  # what follows the last line's end is nothing, or a line cut short
    replace(path, b"".join(_until(path, lines, step)))


def _until(path: Path, lines: Sequence[bytes], step: int) -> Iterator[bytes]:
    for number, line in enumerate(lines, 1):
        try:
            later = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path}, line {number} is not a record of a run: {line[:80]!r}") from None
        if not later:
            yield line + b"\n"


class TensorBoard:
    """Writes scalars and samples for TensorBoard into ``folder``; needs ``pip install dense-rlhf[tensorboard]``.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard logging needs: pip install 'dense-rlhf[tensorboard]'") from error
        self._write_from = partial(SummaryWriter, folder)
        self._writer = self._write_from() if writes() else None

    def rewind(self, step: int) -> None:
        """Continue in a new event file that replaces the later steps of the others."""
        self.close()
        self._writer = self._write_from(purge_step=step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in metrics.items():
            if self._writer:
                self._writer.add_scalar(name, value, step)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """One text of all samples, each word for word."""
        if self._writer:
            self._writer.add_text("samples", "\n\n".join(map(_as_markdown, samples)), step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer:
            self._writer.close()


class WeightsAndBiases:
    """Logs to a Weights & Biases run; needs ``pip install dense-rlhf[wandb]``. This is the only logger that uses the
    network.

    A run that another process resumes becomes a new W&B run, which begins where the first ended, unless ``run_id``
    names one to continue. What was sent cannot be taken back, so steps that are repeated are not sent again.

    ``project`` and ``name`` are those of the run there; ``run_id`` continues the run of that id.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, project: str, name: str | None = None, *, run_id: str | None = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Weights & Biases logging needs: pip install 'dense-rlhf[wandb]'") from error
        going_on = {} if run_id is None else {"id": run_id, "resume": "allow"}
        if not writes():
            going_on["mode"] = "disabled"
        self._run = wandb.init(project=project, name=name, **going_on)
        self._wandb = wandb
        self._sent = -1 if run_id is None else self._run.starting_step - 1
        self._skipped_until = -1

    def rewind(self, step: int) -> None:
        """Send nothing until the last step that was sent has been passed."""
        self._skipped_until = self._sent

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step at once."""
        if step > self._skipped_until:
            self._run.log(dict(metrics), step=step)
            self._sent = step

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """A table with a row for each sample."""
        if step > self._skipped_until and samples:
            columns = [*samples[0]]
            table = self._wandb.Table(columns=columns, data=[[one[name] for name in columns] for one in samples])
            self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _as_markdown(sample: Mapping[str, Any]) -> str:
    """A sample as a heading and an indented block, in which nothing is read as markup."""
    whole = f"{sample['prompt']} → {sample['response']}"
    lines = "\n".join(whole.splitlines())
    return (
        f"score {sample['score']:z.4g}, {counted(sample['length'], 'token')}\n\n{indent(lines, '    ', lambda _: True)}"
    )
