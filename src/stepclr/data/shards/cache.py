"""Remote shards: fetched whole, verified, and kept on this machine's disk up to a limit.

The least recently used are deleted first; `STEPCLR_SHARDS_GIB` is the limit, 4 by default. Several processes may share
the folder: a shard appears in it whole or not at all, and one that another process has deleted is fetched again.
"""

import os
import posixpath
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepclr.data.formats import DamagedError
from stepclr.data.recall import checksums
from stepclr.data.shards.index import INDEX, Shard, read_at
from stepclr.errors import StepclrError
from stepclr.io import blake, published, user_folder
from stepclr.threads import threads_for

CHUNK = 2**22  # bytes
AT_ONCE = 8  # shards that are fetched at the same time
TOUCH = 1.0  # s; how exactly the time of a shard's last use is known
IN_USE = 10.0  # s; a shard that was read this recently will soon be read again


def folder() -> Path:
    """The cache folder of shards and indexes."""
    return user_folder("STEPCLR_CACHE", "shards")


@dataclass(frozen=True)
class Place:
    """A folder of files: on this machine (`system` None), or in a file system of fsspec."""

    system: Any
    folder: str

    def path(self, name: str) -> str:
        return posixpath.join(self.folder, name) if self.folder else name

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None if it does not exist."""
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
class Fetching:
    """What one process is fetching."""

    process: int = field(default_factory=os.getpid)
    lock: Any = field(default_factory=threading.Lock)
    started: dict[int, "Future[None]"] = field(default_factory=dict)
    touched: dict[int, float] = field(default_factory=dict)
    reserved: int = 0
    """Bytes of the shards that are being fetched."""


@dataclass(eq=False)
class ShardCache:
    """Shards of a file system of fsspec, as files of this machine while they are needed."""

    system: Any
    urls: list[str]
    shards: list[Shard]
    following: dict[int, Sequence[int]] = field(default_factory=dict)
    state: Fetching | None = field(default_factory=Fetching)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "state": None}

    @property
    def fetching(self) -> Fetching:
        """This process's: neither threads nor connections pass to another one."""
        if self.state is None or self.state.process != os.getpid():
            self.system = type(self.system)(*self.system.storage_args, **self.system.storage_options)
            self.state = Fetching()
        return self.state

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is fetched if it is not here. Raises `DamagedError` if that fails."""
        touched = self.fetching.touched
        while True:
            self.fetched(shard).result()
            for other in self.following.pop(shard, ()):
                self.fetched(other)
            with suppress(FileNotFoundError):  # deleted since, by this process or another
                path = self.path(shard)
                if time.monotonic() - touched.get(shard, 0) > TOUCH:
                    os.utime(path)
                    touched[shard] = time.monotonic()
                return read_at(path, offset, size)

    def expect(self, following: Mapping[int, Sequence[int]]) -> None:
        """From now on, the first read of a shard also starts to fetch those that follow it."""
        self.following = dict(following)

    def path(self, shard: int) -> Path:
        """The shard's file in the cache: named by its content, whatever it is called elsewhere."""
        return folder() / f"shard-{self.shards[shard].checksum}.tar"

    def fetched(self, shard: int) -> "Future[None]":
        """Done when the shard is here; a shard that could not be fetched is not tried again."""
        state = self.fetching
        with state.lock:
            known = state.started.get(shard)
            if known is None or (known.done() and not known.exception() and not self.path(shard).exists()):
                known = state.started[shard] = threads_for("fetch", AT_ONCE).submit(self._fetch, shard)
            return known

    def _fetch(self, shard: int) -> None:
        path, size = self.path(shard), self.shards[shard].bytes
        if path.exists() and path.stat().st_size == size:
            return
        state = self.fetching
        with state.lock:
            make_room(size + state.reserved)
            state.reserved += size
        try:
            copy(self.system, self.urls[shard], path, self.shards[shard].checksum)
        finally:
            with state.lock:
                state.reserved -= size


def copy(system: Any, url: str, path: Path, checksum: str | None) -> str:
    """Fetch a file to `path`, tried twice, and return its checksum.

    Raises `DamagedError` if it cannot be fetched, or `checksum` is given and differs.
    """
    try:
        return _copy(system, url, path, checksum)
    except DamagedError:
        return _copy(system, url, path, checksum)


def _copy(system: Any, url: str, path: Path, checksum: str | None) -> str:
    content = blake()
    with published(path) as file:
        try:
            with system.open(url, "rb") as source:
                while chunk := source.read(CHUNK):
                    content.update(chunk)
                    file.write(chunk)
        except Exception as error:  # whatever the file system's client raises
            why = "it is missing" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            raise DamagedError(f"{url} cannot be fetched: {why}") from error
        if checksum is not None and content.hexdigest() != checksum:
            raise DamagedError(f"{url} is corrupt: its checksum does not match the index")
    return content.hexdigest()


def index_file(place: Place, name: str, checksum: str) -> Path:
    """A file of the index, verified, as a file of this machine."""
    if place.system is not None:
        path = folder() / f"{checksum}-{name}"
        if not path.exists():
            copy(place.system, place.path(name), path, checksum)
        return path
    path = Path(place.path(name))
    if checksums(path.parent, [name]) != [checksum]:
        raise StepclrError(f"{path} is missing or corrupt: its checksum does not match {INDEX}; pack again")
    return path


def make_room(size: int) -> None:
    """Delete the least recently used shards until `size` more bytes fit below the limit."""
    kept = []
    for path in folder().glob("shard-*.tar"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            kept.append((stat.st_mtime, stat.st_size, path))
    excess = size + sum(length for _, length, _ in kept) - limit()
    for used, length, path in sorted(kept):
        if excess <= 0:
            break
        if time.time() - used < IN_USE:
            warnings.warn(
                "shards that are still being read are deleted from the cache and fetched again: its limit, "
                f"{limit() / 2**30:g} GiB, is too low; STEPCLR_SHARDS_GIB sets a higher one",
                stacklevel=2,
            )
        path.unlink(missing_ok=True)
        excess -= length


def limit() -> int:
    """Bytes that fetched shards may take."""
    text = os.environ.get("STEPCLR_SHARDS_GIB") or "4"
    try:
        return int(float(text) * 2**30)
    except (ValueError, OverflowError):
        raise StepclrError(f"STEPCLR_SHARDS_GIB must be a number of GiB, not {text!r}") from None
