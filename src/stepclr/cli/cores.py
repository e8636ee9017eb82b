"""As many threads as a container may keep busy, and a note where other processes are in the way of torch's threads.

The threads of one computation wait for each other many times in a step. Where another process has the core of one of
them, oneDNN's wait in a loop, which keeps a core busy too, until the system gives that one a turn.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import psutil

from stepclr.cli.printing import note
from stepclr.threads import cores, visible_cores

EVERY = 5  # seconds between two readings
MARGIN = 0.5  # cores: the system itself needs so many now and then


def keep_to_share() -> None:
    """Before torch is imported: give it as many threads as a container may keep busy, unless the user has decided.

    By itself it starts one for each core of the machine. Once they have used up the container's share of a tenth of a
    second, all of them stand still for the rest of it, also the one that the others wait for.
    """
    if (share := cores()) < len(visible_cores()):
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


@contextmanager
def noticing_others() -> Iterator[None]:
    """A context in which a note is printed, once, if other processes leave too few cores for torch's threads."""
    ended = threading.Event()
    threading.Thread(target=_notice, args=(ended,), name="stepclr-others", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class Reading(NamedTuple):
    """Seconds: on the clock, that the cores were idle, and that this process kept one of them busy."""

    clock: float
    idle: float
    own: float


def note_on_others(before: Reading, after: Reading, all_cores: int, threads: int) -> str | None:
    """What to say about other processes, if no core was idle, and torch's threads and they need more than there are."""
    clock, idle, own = (now - then for now, then in zip(after, before, strict=True))
    others = all_cores - (idle + own) / clock
    if threads == 1 or idle / clock > MARGIN or threads + others < all_cores + MARGIN:
        return None
    fewer = max(1, int(all_cores - others + MARGIN))
    return (
        f"other processes keep {others:.1f} of {all_cores} cores busy: the {threads} threads of this command wait for "
        f"each other, which can take many times as long; stop those processes, or set OMP_NUM_THREADS={fewer}"
    )


def _notice(ended: threading.Event) -> None:
    with suppress(psutil.Error, OSError):  # a system that does not tell
        before = _read()
        while not ended.wait(EVERY):
            after = _read()
            if line := note_on_others(before, after, len(visible_cores()), _threads()):
                note(line)
                return
            before = after


def _read() -> Reading:
    ours = visible_cores()
    seen = [core for number, core in enumerate(psutil.cpu_times(percpu=True)) if number in ours]
    idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in seen)
    return Reading(time.monotonic(), idle, _own())


def _own() -> float:
    """Seconds of processor time of this process, of those that it started, and of theirs."""
    here = psutil.Process()
    seconds = 0.0
    for process in [here, *here.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended
            seconds += sum(process.cpu_times()[:4])  # its own, and of the processes that it waited for
    return seconds


def _threads() -> int:
    """How many threads torch computes with on the CPU; 1 until it is imported, and where a GPU computes."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):  # it is being imported
        return 1
    from stepclr.device import default_device

    return int(torch.get_num_threads()) if default_device().type == "cpu" else 1
