"""The processor's cores, threads that share work among them, reading ahead in a thread, and progress."""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Progress = Callable[[int, int], None]  # is called with (images done, images in all)
Announce = Callable[[str], object]  # is called with what is done next, in words
Batch = TypeVar("Batch")
Content = TypeVar("Content")
PIECES_PER_THREAD = 4  # of a piece of work, so that all threads finish at about the same time


def silent(*_: object) -> None:
    """A `Progress` or `Announce` that does nothing."""


def visible_cores() -> Collection[int]:
    """The numbers of the cores that the system may run this process on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def cores() -> int:
    """As many cores as this process may keep busy: a container sees all there are, but may have a share of them."""
    from joblib import cpu_count  # --help prints without it

    return int(cpu_count())


def pool() -> ThreadPoolExecutor:
    """The threads that read and decode: one for each core, divided among the ranks of this machine."""
    return threads_for("read", max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@cache
def threads_for(task: str, count: int) -> ThreadPoolExecutor:
    """The threads of this process for a task, which is part of their name: the same ones at every call."""
    return ThreadPoolExecutor(count, f"stepclr-{task}")


def share_out(task: str, do: Callable[[int, int], None], n: int, least: int, count: int) -> None:
    """Call do(first, last) for pieces of range(n), of at least `least` each, on `count` threads."""
    step = max(least, -(-n // (count * PIECES_PER_THREAD)))
    if count == 1 or step >= n:
        do(0, n)
        return
    pool = threads_for(task, count)
    pieces = [pool.submit(do, first, min(first + step, n)) for first in range(0, n, step)]
    for piece in pieces:
        piece.result()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads_for.cache_clear)  # a forked process does not inherit threads


def read_ahead(batches: Iterable[Batch], read: Callable[[Batch], Content]) -> Iterator[tuple[Batch, Content]]:
    """(batch, `read(batch)`) of each batch in turn; a thread reads the next one while the caller uses this one."""
    waiting: deque[tuple[Batch, Future[Content]]] = deque()
    with ThreadPoolExecutor(1, "stepclr-ahead") as thread:
        for following in batches:
            waiting.append((following, thread.submit(read, following)))
            if len(waiting) == 2:
                batch, content = waiting.popleft()
                yield batch, content.result()
        for batch, content in waiting:
            yield batch, content.result()
