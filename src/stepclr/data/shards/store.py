"""Images in tar shards, on this machine or wherever fsspec reaches: a set like any other, however large.

Nothing is unpacked: an image is its bytes at a place in its shard. Shards of `stepclr pack` come with an index; others
are looked through once, and the cache remembers what is in them.
"""

import io
import os
import posixpath
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from stepclr.data.decode import DamagedError, UnreadableError
from stepclr.data.images import ImageSet
from stepclr.data.shards.cache import Place, ShardCache, index_file
from stepclr.data.shards.index import INDEX, PLAN, Index, Names, load_index, read_at
from stepclr.data.shards.tars import looked_through
from stepclr.data.stores import Encoded
from stepclr.errors import StepclrError
from stepclr.io import fingerprints, stamps, user_folder

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 10_000_000
HINT = "; damaged='skip' (--damaged-shards skip) leaves such shards out"


def is_packed(path: Path) -> bool:
    """Whether a folder holds what `stepclr pack` wrote; raises StepclrError if it has not come to its end."""
    if (path / INDEX).is_file():
        return b'"format": "stepclr shards' in (path / INDEX).read_bytes()
    if (path / PLAN).is_file() and b'"per_shard"' in (path / PLAN).read_bytes():
        raise StepclrError(f"{path} is not packed to its end: the same stepclr pack goes on")
    return False


def open_shards(source: str, damaged: str = "refuse") -> ImageSet:
    """The images in shards: `DIR` of `stepclr pack`, `x.tar`, `DIR/{0000..0127}.tar`, or a URL of any of these.

    damaged: "refuse" raises `StepclrError` that names the first shard that is missing, cut short or altered; "skip"
    leaves its images out, and `skipped` lists it. Shards on this machine are verified here, once for as long as they
    do not change; those fetched from afar when they come, and then "skip" makes their images unreadable.
    """
    place, names = _located(source)
    text = place.read(INDEX)
    index = load_index(text, partial(index_file, place), place.path(INDEX)) if text is not None else None
    if names is None and index is None:
        raise StepclrError(f"{source} has no {INDEX} of stepclr pack: name its shards, as {source}/{{0000..0127}}.tar")
    if index is not None and (names is None or {shard.name for shard in index.shards}.issuperset(names)):
        wrong = _wrong(place, index, names) if place.system is None else {}
    else:
        assert names is not None
        index = looked_through(place, names)
        wrong = dict(index.damaged)
    if wrong and damaged == "refuse":
        raise StepclrError(f"{next(iter(wrong.values()))}{HINT}")
    return _set_of(source, place, index, names, wrong, damaged == "skip")


def _located(source: str) -> tuple[Place, list[str] | None]:
    """Where the shards lie, and their names; None: those that the index there names."""
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
    if not path.endswith(".tar"):
        return Place(system, path), None
    parent, base = posixpath.split(path)
    return Place(system, parent), _expanded(base, source)


def _expanded(name: str, source: str) -> list[str]:
    """`{0000..0127}.tar` as 128 names, zeros kept."""
    found = RANGE.search(name)
    if "{" in (name[: found.start()] + name[found.end() :] if found else name):
        raise StepclrError(f"{source}: write a range of shards as {{0000..0127}}, and one at most")
    if not found:
        return [name]
    first, last = (int(number) for number in found.groups())
    if not 0 <= last - first < MOST_SHARDS:
        raise StepclrError(f"{source}: a range of shards goes upwards, as {{0000..0127}}")
    return [RANGE.sub(str(i).zfill(len(found[1])), name) for i in range(first, last + 1)]


def _wrong(place: Place, index: Index, names: list[str] | None) -> dict[str, str]:
    """What is wrong with shards on this machine."""
    wanted = None if names is None else set(names)
    shards = [shard for shard in index.shards if wanted is None or shard.name in wanted]
    root, paths = Path(place.folder), [shard.name for shard in shards]
    found = {}
    for shard, stamp in zip(shards, stamps(root, paths), strict=True):
        if not stamp:
            found[shard.name] = f"{root / shard.name} is missing"
        elif stamp[0] != shard.bytes:
            found[shard.name] = f"{root / shard.name} is damaged: it has {stamp[0]:,} bytes of {shard.bytes:,}"
    whole = [shard for shard in shards if shard.name not in found]
    prints = fingerprints(root, [shard.name for shard in whole], user_folder("STEPCLR_CACHE", "decoded"), True) or []
    for shard, fingerprint in zip(whole, prints, strict=True):
        if fingerprint != shard.checksum:
            found[shard.name] = f"{root / shard.name} is damaged: its bytes are not those that {INDEX} tells of"
    return found


def _set_of(
    source: str, place: Place, index: Index, names: list[str] | None, wrong: dict[str, str], skip: bool
) -> ImageSet:
    wanted = set(names) - set(wrong) if names is not None else {shard.name for shard in index.shards} - set(wrong)
    counts = np.array([shard.images for shard in index.shards], np.int64)
    ends = np.cumsum(counts)
    chosen = np.array([shard.name in wanted for shard in index.shards], bool)
    rows = np.arange(index.images)
    if not chosen.all():
        rows = np.concatenate([np.arange(ends[k] - counts[k], ends[k]) for k in np.flatnonzero(chosen)] or [rows[:0]])
    skipped = [(name, f"its images are left out: {why}") for name, why in wrong.items()] + index.skipped
    if not len(rows):
        why = f"; {': '.join(skipped[0])}" if skipped else ""
        raise StepclrError(f"{source} holds no image{why}")
    table = index.table()
    labels = np.ascontiguousarray(table["label"] if len(rows) == len(table) else table["label"][rows])
    if labels.min() < -1 or labels.max() >= len(index.classes):
        raise StepclrError(f"{place.path(INDEX)} is damaged: it has labels outside its {len(index.classes)} classes")
    starts = np.concatenate([[0], np.cumsum(np.where(chosen, counts, 0))])
    store = _store(place, index, ends, skip)
    return ImageSet(store, rows, labels, index.classes, Names(index, rows), source, skipped, starts=starts)


def _store(place: Place, index: Index, ends: Int64[np.ndarray, " s"], skip: bool) -> Encoded:
    paths = [place.path(shard.name) for shard in index.shards]
    cache = ShardCache(place.system, paths, index.shards) if place.system is not None else None
    read: Callable[[int, int, int], bytes] = (
        cache.read if cache else lambda shard, offset, size: read_at(paths[shard], offset, size)
    )

    def opened(row: int) -> io.BytesIO:
        offset, size, crc = index.place(row)
        try:
            content = read(int(np.searchsorted(ends, row, "right")), offset, size)
        except DamagedError as error:
            raise (UnreadableError(str(error)) if skip else DamagedError(f"{error}{HINT}")) from error
        except StepclrError as error:  # no room in the cache: nothing that skipping would put right
            raise DamagedError(str(error)) from error
        if len(content) != size or zlib.crc32(content) != crc:
            raise UnreadableError("its bytes in the shard are not those that the index tells of")
        return io.BytesIO(content)

    def contents(rows: NDArray[np.int64], _memory: Path, _read: bool) -> list[str]:
        members = index.table()[rows]
        return [
            f"{crc:08x} {size}" for crc, size in zip(members["crc"].tolist(), members["size"].tolist(), strict=True)
        ]

    def sizes(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        table = index.table()
        return np.stack([table["height"][rows], table["width"][rows]], axis=1).astype(np.int64)

    def recall(
        _what: str, ask: Callable[[int], str | None], rows: NDArray[np.int64], _memory: Path
    ) -> list[str | None]:
        return [ask(row) for row in rows.tolist()]  # the index remembers all that is asked for again

    return Encoded(opened, contents, recall, sizes, cache.expect if cache else None)
