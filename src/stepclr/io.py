"""What is kept on disk: where, how a file appears there whole or not at all, and what is known of files' bytes."""

import csv
import hashlib
import io
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from stepclr.errors import StepclrError
from stepclr.threads import pool

SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without its time stamps telling
ABANDONED = 86_400  # s; a temporary file this old is what a killed process left
UNREAD = "unread"
CHUNK = 256  # files that a thread looks at in one go

Stamp = tuple[int, ...]


def user_folder(variable: str, name: str) -> Path:
    """The folder that the environment variable names, by default `name` in the user's cache folder for stepclr."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(variable) or f"{home}/stepclr/{name}").expanduser()


def write_whole(path: Path, write: Callable[[BufferedWriter], object]) -> None:
    """Write a file that every process sees whole or not at all: beside its place, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with named(path), temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)  # the rename itself has to reach the disk too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all; names in it come back as they were, whatever is in them."""
    text = io.StringIO()
    # A file's name may hold a lone carriage return, which Python quotes only where lines end as its csv ends them, and
    # need not be text: what cannot be encoded is written as it came.
    csv.writer(text).writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system in here name this file, if no other: it does not say itself where a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def torn(folder: Path) -> list[Path]:
    """What is left in a folder of files that `write_whole` was killed in, or is at just now."""
    return list(folder.glob(".*.tmp"))


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """No second process has the folder meanwhile; however this one ends, it is free again.

    What a process that was killed has left half written there is cleared away.

    Raises StepclrError, saying `busy`, if another has it. Where the system has no such locks, nothing is held.
    """
    with _locked(folder, busy):
        for half in torn(folder):
            half.unlink()
        yield


@contextmanager
def _locked(folder: Path, busy: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StepclrError(busy) from None
        yield
    finally:
        os.close(handle)


def publish(path: Path, write: Callable[[BufferedWriter], object]) -> None:
    """`write_whole` into a cache folder: clears away what killed processes left there; one line where it fails."""
    try:
        _sweep(path.parent)
        write_whole(path, write)
    except OSError as error:
        why = error.strerror or error
        raise StepclrError(f"cannot write in {path.parent}: {why}; STEPCLR_CACHE may name another folder") from error


def blake() -> "hashlib.blake2b":
    """The hash that files' bytes are known by."""
    return hashlib.blake2b(digest_size=16)


def checksum(path: Path) -> str | None:
    """The hash of a file's bytes; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, blake).hexdigest()
    except OSError:
        return None


def fingerprints(root: Path, paths: list[str], folder: Path, read: bool) -> list[str] | None:
    """A hash of each file's bytes, `paths` relative to `root`; None if one is not known and `read` is false."""
    found = recall("contents", root, paths, stamps(root, paths), lambda i: checksum(root / paths[i]), folder, read)
    return None if found is None else [known or UNREAD for known in found]


def recall(
    what: str,
    root: Path,
    paths: list[str],
    stamped: Sequence[Stamp],
    ask: Callable[[int], str | None],
    folder: Path,
    read: bool = True,
) -> list[str | None] | None:
    """What `ask` answers of file i, None where it has no answer; None if one is not known and `read` is false.

    Like git's index, a file in `folder` remembers the answers by the files' stamps, without which their bytes do not
    change. `what` names the question, and all that the answer depends on besides the bytes.
    """
    name = hashlib.blake2b(os.fsencode(root) + what.encode(), digest_size=16).hexdigest()
    memory = folder / f"index-{name}.json"
    known = _remembered(memory)
    now = time.time_ns()
    answers = [_answer(known.get(path), stamp) for path, stamp in zip(paths, stamped, strict=True)]
    unknown = [i for i, answer in enumerate(answers) if answer is None and stamped[i]]
    if unknown and not read:
        return None
    for i, answer in zip(unknown, pool().map(ask, unknown), strict=True):
        answers[i] = answer
        if answer is not None and max(stamped[i][1:]) < now - SETTLED:
            known[paths[i]] = _written(stamped[i]) + answer
    if unknown:
        text = json.dumps(known).encode()
        with suppress(StepclrError):  # where nothing can be written, it is asked again
            publish(memory, lambda file: file.write(text))
    return answers


def stamps(root: Path, paths: list[str]) -> list[Stamp]:
    """(size, time of change, time of change of its entry) of each file; () where there is none."""
    parts = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    found = pool().map(lambda part: [_stamp(os.path.join(root, path)) for path in part], parts)
    return list(itertools.chain.from_iterable(found))


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _answer(entry: object, stamp: Stamp) -> str | None:
    known = isinstance(entry, str) and stamp and entry.startswith(_written(stamp))
    return entry.removeprefix(_written(stamp)) if isinstance(entry, str) and known else None


def _written(stamp: Stamp) -> str:
    return f"{' '.join(map(str, stamp))} "  # one string a file: the garbage collector would go through lists


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _sweep(folder: Path) -> None:
    for left in torn(folder):
        try:
            if left.stat().st_mtime < time.time() - ABANDONED:
                left.unlink()
        except FileNotFoundError:  # another process was faster
            continue
