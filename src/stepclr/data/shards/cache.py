"""Shards from afar: fetched whole, verified, and kept on this machine's disk; above a limit the least recently used go.

Several processes may share the folder: a shard appears in it whole or not at all, and one that another has put out is
fetched again. `STEPCLR_SHARDS_GIB` is the limit, 4 by default.
"""

import os
import posixpath
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from io import BufferedWriter
from pathlib import Path
from typing import Any

from stepclr.data.decode import DamagedError
from stepclr.data.shards.index import INDEX, Shard, read_at
from stepclr.errors import StepclrError
from stepclr.io import blake, fingerprints, publish, user_folder

CHUNK = 2**22  # bytes
AT_ONCE = 8  # shards that come at the same time
TOUCH = 1.0  # s; how exactly the time of a shard's last use is told
IN_USE = 10.0  # s; a shard read so lately will be read again in a moment


def folder() -> Path:
    """Where shards and indexes are kept."""
    return user_folder("STEPCLR_CACHE", "shards")


@dataclass(frozen=True)
class Place:
    """Files that belong together: on this machine (`system` None), or in a file system of fsspec's."""

    system: Any
    folder: str

    def path(self, name: str) -> str:
        return posixpath.join(self.folder, name) if self.folder else name

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where there is none."""
        try:
            if self.system is None:
                return Path(self.path(name)).read_bytes()
            content: bytes = self.system.cat_file(self.path(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            return None
        except Exception as error:  # whatever the file system's client raises
            raise StepclrError(f"{self.path(name)} cannot be read: {type(error).__name__}: {error}") from error
        return content


@dataclass(eq=False)
class ShardCache:
    """Shards of a file system of fsspec's, as files of this machine while they are wanted."""

    system: Any
    urls: list[str]
    shards: list[Shard]
    following: dict[int, Sequence[int]] = field(default_factory=dict)
    coming: dict[int, "Future[None]"] = field(default_factory=dict)
    touched: dict[int, float] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)
    reserved: int = 0
    """Bytes of the shards that are on their way."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is fetched if it is not here. Raises `DamagedError` if it cannot be had whole."""
        while True:
            self.fetched(shard).result()
            for other in self.following.pop(shard, ()):
                self.fetched(other)
            with suppress(FileNotFoundError):  # put out since, by this process or another
                path = self.path(shard)
                if time.monotonic() - self.touched.get(shard, 0) > TOUCH:
                    os.utime(path)
                    self.touched[shard] = time.monotonic()
                return read_at(path, offset, size)

    def expect(self, following: Mapping[int, Sequence[int]]) -> None:
        """From now on, the first read of a shard makes those that follow it come too."""
        self.following = dict(following)

    def path(self, shard: int) -> Path:
        """Where a shard is kept: content has one place, whatever it is called there."""
        return folder() / f"shard-{self.shards[shard].checksum}.tar"

    def fetched(self, shard: int) -> "Future[None]":
        """Done when the shard is here; one that cannot be had is not asked for again."""
        with self.lock:
            known = self.coming.get(shard)
            if known is None or (known.done() and not known.exception() and not self.path(shard).exists()):
                known = self.coming[shard] = fetchers().submit(self._fetch, shard)
            return known

    def _fetch(self, shard: int) -> None:
        path, size = self.path(shard), self.shards[shard].bytes
        if path.exists() and path.stat().st_size == size:
            return
        with self.lock:
            make_room(size + self.reserved)
            self.reserved += size
        try:
            copy(self.system, self.urls[shard], path, self.shards[shard].checksum)
        finally:
            with self.lock:
                self.reserved -= size


def copy(system: Any, url: str, path: Path, checksum: str | None) -> str:
    """Fetch a file to `path`, tried twice; its checksum. Raises `DamagedError` if it has another or cannot be had."""
    found = blake()

    def write(file: BufferedWriter) -> None:
        nonlocal found
        found = blake()
        try:
            with system.open(url, "rb") as source:
                while chunk := source.read(CHUNK):
                    found.update(chunk)
                    file.write(chunk)
        except Exception as error:  # whatever the file system's client raises
            why = "it is missing" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            raise DamagedError(f"{url} cannot be fetched: {why}") from error
        if checksum is not None and found.hexdigest() != checksum:
            raise DamagedError(f"{url} is damaged: its bytes are not those that the index tells of")

    try:
        publish(path, write)
    except DamagedError:
        publish(path, write)
    return found.hexdigest()


def index_file(place: Place, name: str, checksum: str) -> Path:
    """A file of the index as a file of this machine, verified."""
    if place.system is not None:
        path = folder() / f"{checksum}-{name}"
        if not path.exists():
            copy(place.system, place.path(name), path, checksum)
        return path
    path = Path(place.path(name))
    if fingerprints(path.parent, [name], user_folder("STEPCLR_CACHE", "decoded"), True) != [checksum]:
        raise StepclrError(f"{path} is missing or damaged: {INDEX} tells of other bytes; pack again")
    return path


def make_room(size: int) -> None:
    """Put out the least recently used shards until `size` more bytes fit below the limit."""
    kept = []
    for path in folder().glob("shard-*.tar"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            kept.append((stat.st_mtime, stat.st_size, path))
    excess = size + sum(bytes_ for _, bytes_, _ in kept) - limit()
    for used, bytes_, path in sorted(kept):
        if excess <= 0:
            break
        if time.time() - used < IN_USE:
            warnings.warn(
                f"shards still being read have to leave the cache, whose limit is {limit() / 2**30:g} GiB, and will be "
                "fetched again: STEPCLR_SHARDS_GIB sets a higher one",
                stacklevel=2,
            )
        path.unlink(missing_ok=True)
        excess -= bytes_


def limit() -> int:
    """Bytes that fetched shards may take."""
    text = os.environ.get("STEPCLR_SHARDS_GIB") or "4"
    try:
        return int(float(text) * 2**30)
    except (ValueError, OverflowError):
        raise StepclrError(f"STEPCLR_SHARDS_GIB must be a number of GiB, not {text!r}") from None


@cache
def fetchers() -> ThreadPoolExecutor:
    """The threads that fetch."""
    return ThreadPoolExecutor(AT_ONCE, "stepclr-fetch")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=fetchers.cache_clear)
