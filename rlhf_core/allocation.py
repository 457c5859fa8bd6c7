"""Keeping freed memory, so that a step does not have to ask the system again for what the last one gave back."""

import ctypes
import sys

# glibc's malloc.h; thresholds above any buffer of a step
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Let the C library keep the big buffers this process frees, from now on; whether it can.

    On a CPU, gradients and activations are freed and made again at every minibatch. glibc returns each to the system
    and fetches it back page by page, zeroed, which can take as long as the arithmetic (docs/performance.md). The
    process's peak stays what it is, but it holds that peak until it ends. Other systems' libraries have no such
    setting, and nothing changes there.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
