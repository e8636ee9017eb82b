"""Images in tar shards, on this machine or wherever fsspec reaches: a set like any other, however large.

Nothing is unpacked: an image is a range of bytes in its shard. Shards of `stepclr pack` come with an index. Others are
scanned once, and the cache remembers what is in them.
"""

import io
import os
import posixpath
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from stepclr.data.formats import DamagedError, PassingError, UnreadableError
from stepclr.data.images import ImageSet
from stepclr.data.ledger import Ignored, Ledger
from stepclr.data.reading import RGB
from stepclr.data.recall import checksums, stamps
from stepclr.data.shards.cache import Place, ShardCache, index_file
from stepclr.data.shards.index import INDEX, PLAN, Index, ShardNames, load_index, read_at
from stepclr.data.shards.tars import scanned
from stepclr.data.stores import Files, Rows
from stepclr.errors import StepclrError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 10_000_000
OF_A_SHARD = "damaged shard: "  # begins the reason of an image that is left out with its shard
HINT = "; damaged_shards='skip' leaves such shards out"


@dataclass(eq=False)
class ShardStore(Files):
    """Rows of an index, read from shards at `paths`: files of this machine, or of `cache`, which fetches them."""

    index: Index
    paths: list[str]
    cache: ShardCache | None
    indexed = sharded = True

    def open(self, row: int) -> io.BytesIO:
        offset, size, crc = self.index.place(row)
        shard = int(np.searchsorted(self.index.ends, row, "right"))
        try:
            if self.cache is None:
                content = read_at(self.paths[shard], offset, size)
            else:
                content = self.cache.read(shard, offset, size)
        except DamagedError as error:
            raise (PassingError(str(error)) if self.reading.skips else DamagedError(f"{error}{HINT}")) from error
        except StepclrError as error:  # the cache has no room: skipping would not help
            raise DamagedError(str(error)) from error
        if len(content) != size or zlib.crc32(content) != crc:
            raise UnreadableError("its bytes in the shard do not match the checksum in the index")
        return io.BytesIO(content)

    def sizes(self, rows: Rows, remember: bool = True) -> Int64[np.ndarray, "n 2"]:  # noqa: ARG002
        table = self.index.table()
        sizes = np.stack([table["height"][rows], table["width"][rows]], axis=1).astype(np.int64)
        if self.reading.bands != RGB:  # the pass over shards without an index reads images as RGB
            unknown = ~sizes.all(axis=1)
            sizes[unknown] = super().sizes(rows[unknown])
        return sizes

    def checksums(self, rows: Rows, memory: Path | None = None) -> list[str]:  # noqa: ARG002
        members = self.index.table()[rows]
        pairs = zip(members["crc"].tolist(), members["size"].tolist(), strict=True)
        return [f"{crc:08x} {size}" for crc, size in pairs]

    known_checksums = checksums

    def expect(self, following: Mapping[int, Sequence[int]]) -> None:
        if self.cache is not None:
            self.cache.expect(following)


def is_packed(path: Path) -> bool:
    """Whether a folder contains what `stepclr pack` wrote. Raises StepclrError if packing was not finished."""
    if (path / INDEX).is_file():
        return b'"format": "stepclr shards' in (path / INDEX).read_bytes()
    if (path / PLAN).is_file() and b'"per_shard"' in (path / PLAN).read_bytes():
        raise StepclrError(f"{path}: packing was not finished; run the same stepclr pack again to resume")
    return False


def open_shards(source: str, skips: bool = False) -> ImageSet:
    """The images in shards: `DIR` of `stepclr pack`, `x.tar`, `DIR/{0000..0127}.tar`, or a URL of any of these.

    skips: leave out the images of a shard that is missing, truncated or corrupt, and list them in `skipped`: each, or
    the shard where nobody knows them. Otherwise the first such shard raises `StepclrError`. Shards on this machine are
    verified here, again only after they change. Remote shards are verified when they are fetched.
    """
    place, names = _located(source)
    text = place.read(INDEX)
    index = load_index(text, partial(index_file, place), place.path(INDEX)) if text is not None else None
    if names is None and index is None:
        raise StepclrError(
            f"{source} has no {INDEX} of stepclr pack; give the shards' names, such as {source}/{{0000..0127}}.tar"
        )
    # An index that lacks one of the named shards is of other shards, which happen to lie in the same folder.
    if index is not None and (names is None or {shard.name for shard in index.shards}.issuperset(names)):
        wrong = _wrong(place, index, names) if place.system is None else {}
    else:
        assert names is not None
        index = scanned(place, names)
        wrong = dict(index.damaged)
    if wrong and not skips:
        raise StepclrError(f"{next(iter(wrong.values()))}{HINT}")
    return _set_of(source, place, index, names, wrong)


def _located(source: str) -> tuple[Place, list[str] | None]:
    """Where the shards are, and their names; None: all that the index there lists."""
    system, path = None, source
    if "://" in source:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        try:
            system, path = fsspec.core.url_to_fs(source)
        except (ValueError, ImportError) as error:
            raise StepclrError(f"{source} cannot be opened: {error}") from error
        system = None if isinstance(system, LocalFileSystem) else system
    if system is None:
        path = os.path.abspath(os.path.expanduser(path))
    if not path.lower().endswith(".tar"):
        return Place(system, path), None
    parent, base = posixpath.split(path)
    return Place(system, parent), _expanded(base, source)


def _expanded(name: str, source: str) -> list[str]:
    """The 128 names of `{0000..0127}.tar`, with their zeros."""
    numbers = RANGE.search(name)
    rest = RANGE.sub("", name, count=1)
    if "{" in rest:
        raise StepclrError(f"{source}: a range of shards is written {{0000..0127}}, and there can be only one")
    if not numbers:
        return [name]
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise StepclrError(f"{source}: a range of shards must be ascending, such as {{0000..0127}}")
    return [RANGE.sub(str(i).zfill(len(numbers[1])), name) for i in range(first, last + 1)]


def _wrong(place: Place, index: Index, names: list[str] | None) -> dict[str, str]:
    """What is wrong with shards on this machine, by their names."""
    wanted = None if names is None else set(names)
    shards = [shard for shard in index.shards if wanted is None or shard.name in wanted]
    root = Path(place.folder)
    wrong = {}
    for shard, stamp in zip(shards, stamps(root, [shard.name for shard in shards]), strict=True):
        if not stamp:
            wrong[shard.name] = f"{root / shard.name} is missing"
        elif stamp[0] != shard.bytes:
            wrong[shard.name] = f"{root / shard.name} is corrupt: it has {stamp[0]:,} bytes instead of {shard.bytes:,}"

    # Only shards of the right size are worth reading for their checksums.
    whole = [shard for shard in shards if shard.name not in wrong]
    for shard, checksum in zip(whole, checksums(root, [shard.name for shard in whole]), strict=True):
        if checksum != shard.checksum:
            wrong[shard.name] = f"{root / shard.name} is corrupt: its checksum does not match {INDEX}"
    return wrong


def _set_of(source: str, place: Place, index: Index, names: list[str] | None, wrong: dict[str, str]) -> ImageSet:
    # The rows of the wanted shards; usually that is all of them.
    rows = np.arange(index.images)
    if names is not None or wrong:
        wanted = {shard.name for shard in index.shards if names is None or shard.name in names} - set(wrong)
        chosen = np.array([shard.name in wanted for shard in index.shards], bool)
        rows = rows[np.repeat(chosen, [shard.images for shard in index.shards])]

    ledger = Ledger(_lost(index, wrong) | dict(index.skipped))
    unknown = wrong.keys() - {shard.name for shard in index.shards}
    if unknown:
        shards = "a damaged shard" if len(unknown) == 1 else f"{len(unknown):,} damaged shards"
        ledger.notes.append(f"left out {shards} with an unknown number of images, for example {min(unknown)}")
    for path, kind, hint, number in index.ignored:
        ledger.ignored[path] = Ignored(kind, hint, number)
    if not len(rows):
        raise StepclrError("; ".join([f"{source} contains no image", *ledger.lines()]))
    table = index.table()
    labels = np.ascontiguousarray(table["label"] if len(rows) == len(table) else table["label"][rows])
    if labels.min() < -1 or labels.max() >= len(index.classes):
        raise StepclrError(f"{place.path(INDEX)} is corrupt: it has labels outside its {len(index.classes)} classes")
    paths = [place.path(shard.name) for shard in index.shards]
    cache = ShardCache(place.system, paths, index.shards) if place.system is not None else None
    store = ShardStore(index, paths, cache, reading=index.reading)
    return ImageSet(store, rows, labels, index.classes, ShardNames(index, rows), source, ledger)


def _lost(index: Index, wrong: dict[str, str]) -> dict[str, str]:
    """The images of damaged shards, and why they cannot be read; a shard that the index does not know, as a whole."""
    lost: dict[str, str] = {}
    images = {
        shard.name: range(end - shard.images, end) for shard, end in zip(index.shards, index.ends.tolist(), strict=True)
    }
    for shard, why in wrong.items():
        if shard in images:
            lost |= {index.name(row): f"{OF_A_SHARD}{why}" for row in images[shard]}
        else:
            lost[shard] = f"{OF_A_SHARD}{why}"
    return lost
