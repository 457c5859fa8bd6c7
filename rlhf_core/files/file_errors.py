"""Files that others wrote: turn any read error into one that names the file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reading(name: str) -> Iterator[None]:
    """For a damaged file, libraries raise KeyError, TypeError, bare Exception and others, without naming the file.
    Inside this block such an error becomes a ValueError that names it, with the original as its cause.

    Errors that name the file already, and those that are not about it (of the system or the network, no memory, a
    missing package, a failed assertion), pass as they are.
    """
    try:
        yield
    except (ImportError, MemoryError, AssertionError):
        raise
    except Exception as error:
        if _out_of_memory(error):
            raise
        if isinstance(error, ValueError | OSError) and name in str(error):
            raise
        said = f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} cannot be read: {said}") from error


def _out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory. Torch is not imported for this, as that takes seconds."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
