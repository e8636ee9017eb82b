"""The processor's cores, and the threads that read and decode images."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that read and decode: one for each core, shared out among the ranks of this machine."""
    return ThreadPoolExecutor(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), "stepclr-read")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked process does not inherit threads
