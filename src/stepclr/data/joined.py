"""Several sources as one set: their images one source after the other, their classes joined by name."""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from stepclr.data.folders import FolderStore
from stepclr.data.formats import File, UnreadableError
from stepclr.data.images import ImageSet, Labeling
from stepclr.data.ledger import Ledger
from stepclr.data.reading import Reading
from stepclr.data.shards.store import ShardStore
from stepclr.data.stores import Files, Items, Rows, Store
from stepclr.errors import StepclrError


@dataclass(eq=False)
class Joined(Store):
    """The rows of several stores; those of store k begin at `starts[k]`."""

    stores: list[Store]
    starts: Int64[np.ndarray, " k"]
    tags: list[str]
    """What stands before the names of the images of each store."""
    sources: list[str]
    """Where each store's images are, in words."""

    def __post_init__(self) -> None:
        # Objects in memory must not be read by several threads, so they decide for all.
        in_order = any(isinstance(store, Items) for store in self.stores)
        self.files = any(store.files for store in self.stores) and not in_order
        self.decoded = all(store.decoded for store in self.stores)
        self.indexed = all(store.indexed for store in self.stores)
        self.sharded = any(store.sharded for store in self.stores)

    def part_of(self, rows: Rows) -> Int64[np.ndarray, " n"]:
        """Which store each row is of."""
        return np.searchsorted(self.starts, rows, "right") - 1

    def image(self, row: int, short_side: int | None) -> Tensor:
        k, inside = self._place(row)
        image = self.stores[k].image(inside, short_side)
        self.note(row, self.stores[k].remarks.get(inside, ""))
        return image

    def size(self, row: int) -> tuple[int, int]:
        k, inside = self._place(row)
        return self.stores[k].size(inside)

    def open(self, row: int) -> File | None:
        k, inside = self._place(row)
        return self.stores[k].open(inside)

    def read(self, rows: Rows, short_side: int | None) -> Tensor | list[Tensor | UnreadableError]:
        images: list[Tensor | UnreadableError] = [UnreadableError("not read")] * len(rows)
        for k, places, inside in self._parts(rows):
            store = self.stores[k]
            for place, row, image in zip(places, inside.tolist(), store.read(inside, short_side), strict=True):
                images[place] = image
                self.note(int(rows[place]), store.remarks.get(row, ""))
        return images

    def sizes(self, rows: Rows, remember: bool = True) -> Int64[np.ndarray, "n 2"]:
        sizes = np.zeros((len(rows), 2), np.int64)
        for k, places, inside in self._parts(rows):
            sizes[places] = self.stores[k].sizes(inside, remember)
        return sizes

    def with_sizes(self, known: Mapping[int, tuple[int, int]]) -> Store:
        rows = np.array(list(known), np.int64)
        of_stores: list[dict[int, tuple[int, int]]] = [{} for _ in self.stores]
        for row, k in zip(rows.tolist(), self.part_of(rows).tolist(), strict=True):
            of_stores[k][row - int(self.starts[k])] = known[row]
        joined = copy.copy(self)
        joined.stores = [store.with_sizes(sizes) for store, sizes in zip(self.stores, of_stores, strict=True)]
        return joined

    def read_as(self, reading: Reading) -> Store:
        joined = copy.copy(self)
        joined.reading, joined.remarks = reading, {}
        joined.stores = [store.read_as(reading) for store in self.stores]
        return joined

    def checksums(self, rows: Rows, memory: Path | None = None) -> list[str]:
        return self._checksums(rows, lambda store, inside: store.checksums(inside, memory)) or []

    def known_checksums(self, rows: Rows, memory: Path | None = None) -> list[str] | None:
        return self._checksums(rows, lambda store, inside: store.known_checksums(inside, memory))

    def _checksums(self, rows: Rows, of_store: Callable[[Store, Rows], list[str] | None]) -> list[str] | None:
        """The rows' checksums, store by store; None if a store does not have its own."""
        checksums = [""] * len(rows)
        for k, places, inside in self._parts(rows):
            of_part = of_store(self.stores[k], inside)
            if of_part is None:
                return None
            for place, checksum in zip(places, of_part, strict=True):
                checksums[place] = checksum
        return checksums

    def _place(self, row: int) -> tuple[int, int]:
        k = int(self.part_of(np.array([row]))[0])
        return k, row - int(self.starts[k])

    def _parts(self, rows: Rows) -> Iterator[tuple[int, list[int], Rows]]:
        """(store, places among the rows, rows of that store)."""
        part = self.part_of(rows)
        for k in np.unique(part).tolist():
            places = np.flatnonzero(part == k)
            yield k, places.tolist(), rows[places] - self.starts[k]


def join(sets: Sequence[ImageSet]) -> ImageSet:
    """All images of several sets. An image of a folder, a zip or shards is named by that and its own name.

    Classes of one name are one class. Raises StepclrError where an image would be in the set twice, for remote shards,
    which are read in their own order, and for sets that are not read alike.
    """
    if len(sets) == 1:
        return sets[0]
    _check(sets)
    classes = sets[0].classes
    if any(images.classes != classes for images in sets):
        classes = sorted({name for images in sets for name in images.classes})
    names, rows, labels, stores, starts = [], [], [], [], [0]
    ledger, tags = Ledger(), _tags(sets)
    for images, tag in zip(sets, tags, strict=True):
        names += [f"{tag}{name}" for name in images.names]
        rows.append(images.rows + starts[-1])
        number = np.array([classes.index(name) for name in images.classes] + [-1])
        labels.append(number[images.labels])
        stores.append(images.store)
        # A set may be a part of its store, with gaps among its rows: the next store begins after the last of them.
        starts.append(starts[-1] + int(images.rows.max(initial=-1)) + 1)
        ledger.unreadable |= {f"{tag}{name}": why for name, why in images.ledger.unreadable.items()}
        ledger.notes += images.ledger.notes
        ledger.ignored |= {f"{tag}{name}": kind for name, kind in images.ledger.ignored.items()}
    if len(set(names)) < len(names):
        raise StepclrError(f"{_words(sets)}: two images have one name; rename one of the sources")
    sources = [images.source for images in sets]
    reading = stores[0].reading
    if any(store.reading.skips for store in stores):  # in all else they are alike
        reading = replace(reading, damaged_shards="skip")
    store = Joined(stores, np.array(starts[:-1], np.int64), tags, sources, reading=reading)
    return ImageSet(
        store,
        np.concatenate(rows),
        np.concatenate(labels),
        classes,
        names,
        _words(sets),
        ledger,
        short_side=sets[0].short_side,
        labeling=_labeling(sets, tags),
        parts=tuple(chain.from_iterable(images.parts or (images.source,) for images in sets)),
    )


def counts_of_parts(images: ImageSet) -> str:
    """How many images are from which source, in words; "" where there is one source."""
    store = images.store
    if not isinstance(store, Joined):
        return ""
    counts = np.bincount(store.part_of(images.rows), minlength=len(store.sources)).tolist()
    return ", ".join(f"{source} {n:,}" for source, n in zip(store.sources, counts, strict=True))


def _words(sets: Sequence[ImageSet]) -> str:
    return ", ".join(images.source for images in sets)


def _check(sets: Sequence[ImageSet]) -> None:
    """Raise StepclrError for sets that cannot be joined."""
    for i, images in enumerate(sets):
        if isinstance(images.store, ShardStore) and images.store.cache is not None:
            raise StepclrError(f"{images.source} is in remote shards, which are read in their own order: give it alone")
        if images.store.reading.decided != sets[0].store.reading.decided or images.short_side != sets[0].short_side:
            raise StepclrError(f"{images.source} is not read like {sets[0].source}: open them with the same options")
        for other in sets[:i]:
            _check_apart(images, other)


def _check_apart(one: ImageSet, other: ImageSet) -> None:
    """Raise StepclrError where an image would be in both sets."""
    if one is other or (one.source == other.source and _splits(one)):
        raise StepclrError(f"{one.source} is given twice")
    if shared := _splits(one) & _splits(other):
        raise StepclrError(f"{other.source} and {one.source} both have the images of {min(shared)}: leave one out")
    for outer, inner in ((one, other), (other, one)):
        if _is_inside(inner, outer):
            raise StepclrError(
                f"{inner.source} is in {outer.source}, so that its images would count twice: leave one out"
            )


def _is_inside(inner: ImageSet, outer: ImageSet) -> bool:
    """Whether images of the first set are where those of the second are, or in a folder inside that."""
    around = _places(inner)
    if isinstance(inner.store, FolderStore):
        around |= {str(parent) for place in around for parent in Path(place).parents}
    return bool(around & _places(outer))


def _places(images: ImageSet) -> set[str]:
    """Where the images of a set are: its folder, its zip, its shards, or its files."""
    if _numbered(images):
        return set()
    if isinstance(images.store, FolderStore) and _in_files(images):
        return {os.path.realpath(images.store.root / name) for name in images.names}
    if isinstance(images.store, ShardStore):
        used = np.unique(np.searchsorted(images.store.index.ends, images.rows, "right"))
        return {os.path.realpath(images.store.paths[k]) for k in used.tolist()}
    return {os.path.realpath(images.source)}


def _numbered(images: ImageSet) -> bool:
    """Whether the images have no files of their own, so that their names are the source's and a number."""
    in_files = isinstance(images.store, Files)
    return bool(len(images)) and not in_files and images.names[0].startswith(f"{images.source}/") and not images.parts


def _splits(images: ImageSet) -> set[str]:
    """The parts of a named data set, such as "stl10:train"; none of another source."""
    name, _, splits = images.source.partition(":")
    return {f"{name}:{split}" for split in splits.split("+")} if splits and _numbered(images) else set()


def _tags(sets: Sequence[ImageSet]) -> list[str]:
    """What stands before the names of each set: as much of the end of its path as makes the sources differ.

    The tags depend on the sources' paths alone, so that a new image changes the name of no other.
    """
    paths = [() if _is_named(images) else Path(os.path.abspath(images.source)).parts for images in sets]
    depth = 1
    given = [path for path in paths if path]
    while len({path[-depth:] for path in given}) < len(given) and depth < max(map(len, given)):
        depth += 1
    tags = []
    for i, (images, path) in enumerate(zip(sets, paths, strict=True), 1):
        if path:
            tags.append("/".join(path[-depth:]) + "/")
        else:
            same = [other for other in sets if other.source == images.source]
            tags.append(f"{i}/" if len(same) > 1 else "")
    return tags


def _is_named(images: ImageSet) -> bool:
    """Whether the names say by themselves which source they are of: numbered ones, and paths of files."""
    return _numbered(images) or _in_files(images) or bool(images.parts)


def _in_files(images: ImageSet) -> bool:
    """Whether the images were given one by one."""
    return isinstance(images.store, FolderStore) and not os.path.isdir(images.source)


def _labeling(sets: Sequence[ImageSet], tags: Sequence[str]) -> Labeling | None:
    """The tables of all sets that have any, with the names of the joined set."""
    given = [(images.labeling, tag) for images, tag in zip(sets, tags, strict=True) if images.labeling]
    if not given:
        return None
    labeled: Counter[str] = Counter()
    for labeling, _ in given:
        labeled.update(labeling.labeled)
    splits = {images.labeling.split if images.labeling else None for images in sets}
    return replace(
        given[0][0],
        labeled=dict(labeled),
        rows={f"{tag}{name}": row for labeling, tag in given for name, row in labeling.rows.items()},
        has_splits=any(labeling.has_splits for labeling, _ in given),
        replaced=any(labeling.replaced for labeling, _ in given),
        split=splits.pop() if len(splits) == 1 else None,
        missing="; ".join(labeling.missing for labeling, _ in given if labeling.missing),
    )
