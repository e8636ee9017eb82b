"""Decoded images in one memory-mapped file, named by what went in: the files' bytes, the size, the decoder.

The file: the pixels, image after image, each `[3, H, W]`; their sizes, int32 `[n, 2]`, (0, 0) for an image that
cannot be read; a JSON header with the reasons; the header's length and a mark. What a crash leaves has no mark.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepclr.data.decode import DECODER, UnreadableError
from stepclr.data.stores import Encoded, Items, Packed, Pixels, Store, fetch, sizes
from stepclr.errors import StepclrError
from stepclr.io import publish
from stepclr.threads import Progress

MARK = b"stepclr1"
TAIL = struct.Struct("<Q8s")
CHUNK = 256  # images; what is decoded ahead of being written


@dataclass(eq=False)
class Decoded:
    """The images of a set once decoded: those that can be read, their positions, and why the others cannot."""

    store: Store
    kept: NDArray[np.int64]
    reasons: dict[int, str]


def from_cache(
    store: Encoded,
    rows: NDArray[np.int64],
    short_side: int,
    budget: int,
    folder: Path,
    progress: Progress | None,
) -> Decoded | None:
    """The rows' images from the cache, built first if need be; None if they take more than `budget` bytes."""
    if store.known_sizes and not _fits(store, rows, short_side, budget):
        return None
    prints = store.contents(rows, folder, False)
    if prints and (found := _load(_path(folder, prints, short_side), len(rows), budget)):
        return found
    if not _fits(store, rows, short_side, budget):
        return None
    prints = store.contents(rows, folder, True)
    assert prints is not None
    path = _path(folder, prints, short_side)

    def write(file: BufferedWriter) -> None:
        _write(file, store, rows, short_side, progress)
        if store.contents(rows, folder, True) != prints:
            raise StepclrError("images changed while they were being decoded; start again")

    if not (found := _load(path, len(rows), budget)):
        publish(path, write)
        found = _load(path, len(rows), budget)
    return found


def in_memory(
    store: Store, rows: NDArray[np.int64], short_side: int, budget: int, progress: Progress | None
) -> Decoded | None:
    """The rows' images decoded into memory; None if they take more than `budget` bytes."""
    images, kept, reasons, used = [], [], {}, 0
    for position, image in _decode(store, rows, short_side, progress):
        if isinstance(image, UnreadableError):
            reasons[position] = str(image)
        else:
            images.append(image)
            kept.append(position)
            used += image.numel()
        if used > budget:
            return None
    return Decoded(Items(images), np.array(kept, np.int64), reasons)


def header_sizes(store: Encoded, rows: NDArray[np.int64], folder: Path) -> Int64[np.ndarray, "n 2"]:
    """(height, width) of each row's whole image, (0, 0) where it cannot be read; asked once and then remembered."""
    if store.known_sizes:
        return store.known_sizes(rows)

    def ask(row: int) -> str | None:
        with suppress(UnreadableError):
            return "{} {}".format(*store.size(row))
        return None

    found = store.recall(f"sizes, {DECODER}, {Image.MAX_IMAGE_PIXELS}", ask, rows, folder)
    return np.array([[int(side) for side in (size or "0 0").split()] for size in found], np.int64).reshape(-1, 2)


def _decode(
    store: Store, rows: NDArray[np.int64], short_side: int, progress: Progress | None
) -> Iterator[tuple[int, Tensor | UnreadableError]]:
    for start in range(0, len(rows), CHUNK):
        for offset, image in enumerate(fetch(store, rows[start : start + CHUNK], short_side)):
            yield start + offset, image
            if progress:
                progress(start + offset + 1, len(rows))


def _fits(store: Store, rows: NDArray[np.int64], short_side: int, budget: int) -> bool:
    for start in range(0, len(rows), CHUNK):  # in parts, so that a set far too large is told from its first headers
        budget -= int(3 * sizes(store, rows[start : start + CHUNK], short_side).prod(axis=1).sum())
        if budget < 0:
            return False
    return True


def _path(folder: Path, prints: list[str], short_side: int) -> Path:
    what = "\n".join([DECODER, str(Image.MAX_IMAGE_PIXELS), str(short_side), *prints])
    return folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.pixels"


def _write(
    file: BufferedWriter, store: Store, rows: NDArray[np.int64], short_side: int, progress: Progress | None
) -> None:
    shapes, reasons = np.zeros((len(rows), 2), "<i4"), {}
    for position, image in _decode(store, rows, short_side, progress):
        if isinstance(image, UnreadableError):
            reasons[position] = str(image)
        else:
            shapes[position] = image.shape[1:]
            file.write(image.numpy().data)
    header = json.dumps({"short_side": short_side, "decoder": DECODER, "unreadable": reasons}).encode()
    file.write(shapes.tobytes() + header + TAIL.pack(len(header), MARK))


def _load(path: Path, n: int, budget: int) -> Decoded | None:
    """The images in a cache file; None if there is no such file, it is not whole, or above the budget."""
    try:
        with path.open("rb") as file:
            end = file.seek(-TAIL.size, os.SEEK_END)
            length, mark = TAIL.unpack(file.read())
            pixels = file.seek(end - length - 8 * n)
            shapes = np.frombuffer(file.read(8 * n), "<i4").reshape(n, 2).astype(np.int64)
            reasons = {int(i): str(why) for i, why in json.loads(file.read(length))["unreadable"].items()}
        lengths = 3 * shapes.prod(axis=1)
        if mark != MARK or pixels != lengths.sum() or pixels > budget:
            return None
        kept = np.flatnonzero(lengths)
        return Decoded(_mapped(path, shapes[kept], lengths[kept]), kept, reasons)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _mapped(path: Path, shapes: NDArray[np.int64], lengths: NDArray[np.int64]) -> Store:
    if not len(shapes):
        return Items([])
    pixels = np.asarray(np.memmap(path, np.uint8, "r", shape=(int(lengths.sum()),)))
    if (shapes == shapes[0]).all():
        return Pixels(pixels.reshape(-1, 3, *shapes[0]))
    return Packed(pixels, shapes, np.cumsum(lengths) - lengths)
