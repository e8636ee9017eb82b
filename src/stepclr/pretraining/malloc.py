"""Memory that a step frees and the next one wants again is kept by the process: about an eighth of a step's time."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3  # mallopt's numbers for these two thresholds, bytes
KEEP = {MMAP: 2**30, TRIM: 2**31 - 1}
# glibc cannot be asked for its thresholds. These are the largest it sets itself, its default, and the variables of
# the environment that set others when the process began.
DEFAULTS = {MMAP: 2**25, TRIM: 2**17}
VARIABLES = {MMAP: "MALLOC_MMAP_THRESHOLD_", TRIM: "MALLOC_TRIM_THRESHOLD_"}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """A context in which glibc keeps freed blocks of up to 1 GiB; at its end the free ones are returned to the system.

    Without it, every large block is a mapping of its own: unmapped when it is freed, and mapped again in each step. On
    other systems than Linux this does nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    for threshold, value in KEEP.items():
        libc.mallopt(threshold, value)
    try:
        yield
    finally:
        for threshold, default in DEFAULTS.items():
            libc.mallopt(threshold, int(os.environ.get(VARIABLES[threshold], default)))
        libc.malloc_trim(0)
