"""A process whose forks run stepclr's commands, and stop at the n-th touch of the disk, in a way that is asked for.

A fork is there at once, where a new process would import torch first: so every moment can be tried, not some.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
ROOM = 100  # bytes; where there is room for no more, every file is cut short


@dataclass
class End:
    """How a command ended: its exit code or minus the signal, what it said, its largest memory, its touches."""

    code: int
    said: str
    mib: int
    touches: int


@dataclass
class Forks:
    process: subprocess.Popen[str]

    def run(self, *words: str | Path, under: Path, how: str = "", at: int = 0) -> End:
        """Run a command, with its caches in `under`.

        how: at its `at`-th touch of a file in `under` it is "killed"; is killed "half-way" into the next thing that it
        writes there; or the disk is "full" from then on. The default is none of these.
        """
        assert self.process.stdin
        assert self.process.stdout
        request = {"words": [os.fspath(word) for word in words], "under": os.fspath(under), "how": how, "at": at}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return End(**json.loads(self.process.stdout.readline()))


@contextmanager
def forks() -> Iterator[Forks]:
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Forks(process)
        assert process.stdin
        process.stdin.close()


def serve(requests: IO[str]) -> None:
    from stepclr.views.numba.compiled import compiled

    compiled()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would miss the other threads"
    for request in requests:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _run(**json.loads(request))
        os.close(writing)
        with os.fdopen(reading, errors="replace") as said:
            *lines, last = said.read().split("\0")
        _, status, used = os.wait4(child, 0)
        code, mib = os.waitstatus_to_exitcode(status), used.ru_maxrss // 1024
        end = End(code, "".join(lines) or last, mib, int(last) if lines else 0)
        print(json.dumps(end.__dict__), flush=True)


def _run(words: list[str], under: str, how: str, at: int) -> None:
    from stepclr.cli import main

    os.environ |= {"STEPCLR_CACHE": f"{under}/cache", "STEPCLR_DATA": f"{under}/data"}
    touches = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touches
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike):
            if not os.fspath(arguments[0]).startswith(under):
                return
            touches += 1
            if touches == at:
                _end(how)

    sys.addaudithook(hook)
    code = 1
    try:
        main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.write(f"\0{touches}")
        sys.stderr.flush()
        os._exit(code)


def _end(how: str) -> None:
    import resource  # Unix alone has it

    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "half-way" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    serve(sys.stdin)
