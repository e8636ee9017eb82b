"""Memory that a step frees and the next one wants again stays with the process: about an eighth of a step's time."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3  # mallopt's numbers for these two thresholds, bytes
KEEP = {MMAP: 2**30, TRIM: 2**31 - 1}
USUAL = {MMAP: 2**25, TRIM: 2**17}  # the highest that glibc goes by itself, and its default


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets glibc keep freed blocks of up to 1 GiB; what is free at the end goes back. Nothing elsewhere than on Linux.

    Else every large block is a mapping of its own: unmapped when it is freed, and new, page after page, at each step.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    assert libc is not None
    for threshold, value in KEEP.items():
        libc.mallopt(threshold, value)
    try:
        yield
    finally:
        for threshold, value in USUAL.items():
            libc.mallopt(threshold, value)
        libc.malloc_trim(0)
