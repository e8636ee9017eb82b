"""Peak memory, measured in a process of its own. Linux: it is read from /proc."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def peak_mebibytes() -> float:
    """Largest resident size of this process so far; `getrusage` would count its parent's too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a new process; it must be one of a module's own, and so must its arguments."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def _answer(to: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    to.send(function(*arguments))
