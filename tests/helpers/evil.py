"""A pickle that leaves a trace where it is opened."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Evil:
    """A pickle that leaves a file behind when it is read as one."""

    mark: Path

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))

    def plant(self, file: Path) -> None:
        file.write_bytes(pickle.dumps(self))
