"""Keep freed memory in the process, so that the next step need not request it from the system again."""

import ctypes
import sys

# glibc's malloc.h; the first threshold above any buffer of a step, or the highest that older versions allow
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 2**31 - 1, (2**30, 2**25)


def keep_freed_memory() -> bool:
    """From now on, let the C library keep the big buffers that this process frees; return whether it can.

    On a CPU, gradients and activations are freed and made again at every minibatch. glibc returns each to the system
    and fetches it back page by page, zeroed, which can take as long as the arithmetic (docs/performance.md in the
    repository). The process then holds its peak until it ends. Other C libraries have no such setting, and nothing
    changes there.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is None or not mallopt(M_TRIM_THRESHOLD, TRIM_BYTES):
        return False
    return any(mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_BYTES)
