"""A process whose forks run stepclr's commands, and stop at the n-th touch of the disk, in a way that is asked for.

A fork is there at once, where a new process would import torch and the rest first: so every moment can be tried, not
some. `Forks.python` stands for `sys.executable` wherever it does not matter that a process is new.
"""

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
    # Where it is killed, its fork ends a moment later, but before another begins.
    python: str  # takes what the interpreter takes: [-u] [-W ACTION] (-c CODE | -m MODULE | FILE) WORDS

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
    with tempfile.TemporaryDirectory() as folder:  # pytest's own have names that are too long for a socket
        place, python = f"{folder}/socket", Path(folder, "python")
        # torchrun starts its ranks with PYTHON_EXEC. -S and -I: the client is there in 20 ms.
        client = Path(__file__).with_name("forked_python.py")
        python.write_text(f'#!/bin/sh\nPYTHON_EXEC="$0" exec "{sys.executable}" -I -S "{client}" "{place}" "$@"\n')
        python.chmod(0o700)
        command = [sys.executable, __file__, place]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Forks(process, str(python))
            process.stdin.close()


def serve(requests: IO[str], place: str) -> Callable[[], None] | None:
    """Fork for every request until there are no more; in a fork, return what it has to run."""
    import_everything()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would miss the other threads"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    children: dict[int, socket.socket] = {}  # by process
    print("ready", flush=True)
    with selectors.DefaultSelector() as selector:
        for place_to_read in (requests, listener, woken):
            selector.register(place_to_read, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
            # A client that was killed takes its fork with it, before any other may begin.
            for pid, client in list(children.items()):
                if client in ready:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0 if client in ready else os.WNOHANG)
                if done:
                    selector.unregister(client)
                    with suppress(OSError), children.pop(pid):
                        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            if listener in ready:
                client, _ = listener.accept()
                request, files = _received(client)
                if not (pid := os.fork()):
                    _leave(listener, woken, waker, client, *children.values())
                    return lambda: _as_python(files, **request)
                for file in files:
                    os.close(file)
                client.sendall(f"{pid}\n".encode())
                children[pid] = client
                selector.register(client, selectors.EVENT_READ)
            if requests in ready:
                line = requests.readline()
                if not line:
                    return None
                reading, writing = os.pipe()
                if not (pid := os.fork()):
                    os.close(reading)
                    _leave(listener, woken, waker, *children.values())
                    os.dup2(writing, 2)
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                    return lambda: _run(**json.loads(line))
                os.close(writing)
                _report(pid, reading)


def import_everything() -> None:
    """What the commands import when they need it, and what that imports: seconds, which a fork has behind it."""
    import importlib

    import jinja2
    import numpy
    import scipy.optimize
    import sklearn.linear_model
    import sklearn.model_selection
    import sklearn.neighbors
    import timm
    import torch.distributed.launcher.api
    import torchvision
    from PIL import Image

    import stepclr
    from stepclr.views.numba.batch import compiled

    Image.init()
    del jinja2, numpy, scipy, sklearn, timm, torch, torchvision
    for name in stepclr.__all__:
        getattr(stepclr, name)
    for module in ("cli", "pretraining.loop", "pretraining.ddp", "tools.report.writing"):
        importlib.import_module(f"stepclr.{module}")
    compiled()
    gc.collect()
    gc.freeze()  # no fork copies these pages to count references


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    content, files, _, _ = socket.recv_fds(client, 65536, 3)
    while not content.endswith(b"\n"):
        content += client.recv(65536)
    return json.loads(content), files


def _leave(*sockets: socket.socket) -> None:
    """The fork's side of a fork: nothing of the server's is left open."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in sockets:
        each.close()


def _report(child: int, reading: int) -> None:
    with os.fdopen(reading, errors="replace") as said:
        *lines, last = said.read().split("\0")
    _, status, used = os.wait4(child, 0)
    code, mib = os.waitstatus_to_exitcode(status), used.ru_maxrss // 1024
    end = End(code, "".join(lines) or last, mib, int(last) if lines else 0)
    print(json.dumps(end.__dict__), flush=True)


def _as_python(files: list[int], **request: Any) -> None:
    """Be the interpreter that was started so, and end as one does, but for the seconds of taking everything down."""
    code: object = 0
    try:
        _interpret(files, **request)
    except SystemExit as stop:
        code = stop.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(int(code or 0))  # type: ignore[call-overload]


def _interpret(files: list[int], words: list[str], environment: dict[str, str], folder: str) -> None:
    import runpy
    import warnings

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    while words[0] in ("-u", "-W"):
        if words.pop(0) == "-W":
            warnings.simplefilter(words.pop(0))  # type: ignore[arg-type]
    how, *words = words
    own = str(Path(__file__).parent)
    sys.path[:] = [each for each in sys.path if each != own]
    sys.path[:0] = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    if how == "-c":
        sys.argv[:] = ["-c", *words[1:]]
        sys.path.insert(0, "")
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv[:] = words
        sys.path.insert(0, folder)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [how, *words]
        sys.path.insert(0, str(Path(how).resolve().parent))
        runpy.run_path(how, run_name="__main__")


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
    fork = serve(sys.stdin, sys.argv[1])
    if fork:
        fork()
    os._exit(0)
