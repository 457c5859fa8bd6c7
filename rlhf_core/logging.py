"""Where a run's figures go: JSON lines always, TensorBoard and Weights & Biases as extras."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from rlhf_core.disk import told_where_unwritable


@runtime_checkable
class Logger(Protocol):
    """Receives the metrics of every step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""
        ...

    def close(self) -> None:
        """Called by whoever made it, after the last step."""
        ...


class JSONLines:
    """Appends one JSON object per record. As "new" it refuses a file that exists, so that nothing is ever mixed up or
    overwritten."""

    def __init__(self, path: Path, mode: Literal["new", "append"] = "new") -> None:
        if mode == "new" and path.exists():
            raise FileExistsError(f"{path} exists; choose another folder, or move that file away")
        self._path = path
        with told_where_unwritable(path):
            self._file = path.open("ab", buffering=0)  # no half line may wait in a buffer for its next chance

    def write(self, record: Mapping[str, object]) -> None:
        """One line, whole or not at all, at once, so that a killed run keeps what it had.

        Raises:
            ValueError: NaN, which JSON has not.
            OSError: there is no room, or another fault of the disk; says which file, and the way out.
        """
        left = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
        with told_where_unwritable(self._path):
            before = os.fstat(self._file.fileno()).st_size
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):  # what is no regular file cannot be cut
                    self._file.truncate(before)
                raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one step; a value that is not finite is written as its name, for example "nan"."""
        self.write({"step": step, **{name: shown(value) for name, value in metrics.items()}})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def shown(value: float) -> float | str:
    """A number as JSON can hold it: NaN and infinity by name."""
    return value if math.isfinite(value) else str(value)


class TensorBoard:
    """Writes scalars for TensorBoard; needs ``pip install dense-rlhf[tensorboard]``."""

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard logging needs: pip install 'dense-rlhf[tensorboard]'") from error
        self._writer = SummaryWriter(folder)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """Logs to a Weights & Biases run; needs ``pip install dense-rlhf[wandb]``. This is the only logger that uses the
    network."""

    def __init__(self, project: str, name: str | None = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Weights & Biases logging needs: pip install 'dense-rlhf[wandb]'") from error
        self._run = wandb.init(project=project, name=name)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step at once."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
