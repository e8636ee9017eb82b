"""What is kept on disk: where, how a file appears there whole or not at all, and what is known of files' bytes."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import Any

from stepclr.data.stores import pool
from stepclr.errors import StepclrError

SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without its time stamps telling
ABANDONED = 86_400  # s; a temporary file this old is what a killed process left
UNREAD = "unread"


def user_folder(variable: str, name: str) -> Path:
    """The folder that the environment variable names, by default `name` in the user's cache folder for stepclr."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(variable) or f"{home}/stepclr/{name}").expanduser()


def write_whole(path: Path, write: Callable[[BufferedWriter], object]) -> None:
    """Write a file that every process sees whole or not at all: beside its place, flushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
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
        temporary.unlink(missing_ok=True)


def publish(path: Path, write: Callable[[BufferedWriter], object]) -> None:
    """`write_whole` into a cache folder: clears away what killed processes left there; one line where it fails."""
    try:
        _sweep(path.parent)
        write_whole(path, write)
    except OSError as error:
        why = error.strerror or error
        raise StepclrError(f"cannot write in {path.parent}: {why}; STEPCLR_CACHE may name another folder") from error


def fingerprints(root: Path, paths: list[str], folder: Path, read: bool) -> list[str] | None:
    """A hash of each file's bytes, `paths` relative to `root`; None if one is not known and `read` is false.

    Like git's index, a file in `folder` remembers each by the file's size and times of change.
    """
    name = hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()
    memory = folder / f"index-{name}.json"
    known = _remembered(memory)
    now = time.time_ns()
    stamps = list(pool().map(lambda path: _stamp(root / path), paths))
    prints = [_recall(known.get(path), stamp) for path, stamp in zip(paths, stamps, strict=True)]
    unknown = [i for i, known_print in enumerate(prints) if known_print is None]
    if unknown and not read:
        return None
    for i, found in zip(unknown, pool().map(lambda i: _hash(root / paths[i]), unknown), strict=True):
        prints[i] = found
        if found != UNREAD and max(stamps[i][1:]) < now - SETTLED:
            known[paths[i]] = [*stamps[i], found]
    if unknown:
        text = json.dumps(known).encode()
        publish(memory, lambda file: file.write(text))
    return [str(known_print) for known_print in prints]


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _recall(entry: object, stamp: tuple[int, ...]) -> str | None:
    if not stamp:
        return UNREAD
    return entry[3] if isinstance(entry, list) and len(entry) == 4 and entry[:3] == [*stamp] else None


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return UNREAD


def _sweep(folder: Path) -> None:
    for left in folder.glob(".*.tmp"):
        try:
            if left.stat().st_mtime < time.time() - ABANDONED:
                left.unlink()
        except FileNotFoundError:  # another process was faster
            continue
