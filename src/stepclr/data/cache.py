"""Decoded images in one memory-mapped file, named by what went in: the images' checksums, the size, the decoder.

The file: the pixels, image after image, each `[C, H, W]`; their sizes, int32 `[n, 2]`, (0, 0) for an image that
cannot be read; a JSON header with the reasons; the header's length and a mark. After a crash the mark is missing.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stepclr.data.decode import decoder_of, reduced_sizes
from stepclr.data.formats import PassingError, UnreadableError
from stepclr.data.reading import Reading
from stepclr.data.stores import Items, Packed, Pixels, Rows, Store
from stepclr.errors import StepclrError
from stepclr.io import published
from stepclr.threads import Progress

MARK = b"stepclr1"
TAIL = struct.Struct("<Q8s")
CHUNK = 256  # images that are decoded before they are written


@dataclass(eq=False)
class Decoded:
    """The images of a set once decoded: those that can be read, their indices, and why the others cannot."""

    store: Store
    kept: NDArray[np.int64]
    reasons: dict[int, str]
    remarks: dict[int, str]
    """What images that can be read have lost or gained."""
    passing: list[int] = field(default_factory=list)
    """The indices of images that could not be read for a cause that may pass."""


def from_cache(
    store: Store, rows: Rows, short_side: int, budget: int, folder: Path, progress: Progress | None
) -> Decoded | None:
    """The rows' images from the cache, which is built first if needed; None if they take more than `budget` bytes."""
    # Shards can be far too many to ask each image for its checksum, and their sizes are in an index.
    if store.indexed and not _fits(store, rows, short_side, budget):
        return None

    # Usually no image has to be read to know which cache file is theirs.
    checksums = store.known_checksums(rows, folder)
    if checksums is not None:
        decoded = _remembered(_path(folder, store, checksums, short_side), store, rows, short_side, budget)
        if decoded is not None:
            return decoded

    # A set that is too large is recognized by its sizes, before the whole of it is read for its checksums.
    if not _fits(store, rows, short_side, budget):
        return None
    checksums = store.checksums(rows, folder)
    path = _path(folder, store, checksums, short_side)
    decoded = _remembered(path, store, rows, short_side, budget)
    if decoded is not None:
        return decoded

    with published(path) as file:
        _write(file, store, rows, short_side, progress)
        if store.checksums(rows, folder) != checksums:
            raise StepclrError("images changed while they were being decoded; run the command again")
    return _load(path, len(rows), budget, store.reading)


def in_memory(store: Store, rows: Rows, short_side: int, budget: int, progress: Progress | None) -> Decoded | None:
    """The rows' images decoded into memory; None if they take more than `budget` bytes."""
    images, kept, reasons, used = [], [], {}, 0
    for index, image in _decode(store, rows, short_side, progress):
        if isinstance(image, UnreadableError):
            reasons[index] = str(image)
        else:
            images.append(image)
            kept.append(index)
            used += image.numel()
        if used > budget:
            return None
    reading = Reading(channels=store.reading.channels)
    return Decoded(Items(images, reading=reading), np.array(kept, np.int64), reasons, _remarks(store, rows))


def _decode(
    store: Store, rows: Rows, short_side: int, progress: Progress | None
) -> Iterator[tuple[int, Tensor | UnreadableError]]:
    for start in range(0, len(rows), CHUNK):
        for offset, image in enumerate(store.read(rows[start : start + CHUNK], short_side)):
            yield start + offset, image
            if progress:
                progress(start + offset + 1, len(rows))


def _fits(store: Store, rows: Rows, short_side: int, budget: int) -> bool:
    for start in range(0, len(rows), CHUNK):  # in parts: the first headers of a set that is far too large are enough
        sizes = store.sizes(rows[start : start + CHUNK], remember=False)
        budget -= int(store.reading.bands * reduced_sizes(sizes, short_side).prod(axis=1).sum())
        if budget < 0:
            return False
    return True


def _path(folder: Path, store: Store, checksums: list[str], short_side: int) -> Path:
    # The limit that holds, so that the default is the same whether it was left out or written down.
    reading = f"{store.reading.value_range} {store.reading.limit}"
    what = "\n".join([decoder_of(store.reading), reading, str(short_side), *checksums])
    return folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.pixels"


def _write(file: BufferedWriter, store: Store, rows: Rows, short_side: int, progress: Progress | None) -> None:
    shapes, reasons = np.zeros((len(rows), 2), "<i4"), {}
    passing = []
    for index, image in _decode(store, rows, short_side, progress):
        if isinstance(image, UnreadableError):
            reasons[index] = str(image)
            if isinstance(image, PassingError):
                passing.append(index)
        else:
            shapes[index] = image.shape[1:]
            file.write(image.numpy().data)
    facts = {"short_side": short_side, "decoder": decoder_of(store.reading), "unreadable": reasons, "passing": passing}
    header = json.dumps(facts | {"remarks": _remarks(store, rows)}).encode()
    file.write(shapes.tobytes() + header + TAIL.pack(len(header), MARK))


def _remarks(store: Store, rows: Rows) -> dict[int, str]:
    """The remarks on the rows' images, by their place among the rows."""
    if not store.remarks:
        return {}
    return {i: store.remarks[row] for i, row in enumerate(rows.tolist()) if row in store.remarks}


def _remembered(path: Path, store: Store, rows: Rows, short_side: int, budget: int) -> Decoded | None:
    """The images in a cache file; None if there is none that is whole, or if it lacks an image that can be read now."""
    decoded = _load(path, len(rows), budget, store.reading)
    if decoded is None:
        return None
    for index, image in _decode(store, rows[decoded.passing], short_side, None):
        if not isinstance(image, UnreadableError):
            return None
        decoded.reasons[decoded.passing[index]] = str(image)
    return decoded


def _load(path: Path, n: int, budget: int, reading: Reading) -> Decoded | None:
    """The images in a cache file; None if the file does not exist, is not whole, or is larger than the budget."""
    try:
        with path.open("rb") as file:
            end = file.seek(-TAIL.size, os.SEEK_END)
            length, mark = TAIL.unpack(file.read())
            pixels = file.seek(end - length - 8 * n)
            shapes = np.frombuffer(file.read(8 * n), "<i4").reshape(n, 2).astype(np.int64)
            header = json.loads(file.read(length))
            reasons = {int(i): str(why) for i, why in header["unreadable"].items()}
            remarks = {int(i): str(text) for i, text in header["remarks"].items()}
            passing = [int(i) for i in header["passing"]]
        lengths = reading.bands * shapes.prod(axis=1)
        if mark != MARK or pixels != lengths.sum() or pixels > budget:
            return None
        kept = np.flatnonzero(lengths)
        return Decoded(_mapped(path, shapes[kept], lengths[kept], reading), kept, reasons, remarks, passing)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _mapped(path: Path, shapes: NDArray[np.int64], lengths: NDArray[np.int64], reading: Reading) -> Store:
    of_channels = Reading(channels=reading.channels)
    if not len(shapes):
        return Items([], reading=of_channels)
    pixels = np.asarray(np.memmap(path, np.uint8, "r", shape=(int(lengths.sum()),)))
    if (shapes == shapes[0]).all():
        return Pixels(pixels.reshape(-1, reading.bands, *shapes[0]), reading=of_channels)
    return Packed(pixels, shapes, np.cumsum(lengths) - lengths, reading=of_channels)
