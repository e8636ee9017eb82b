"""Stores: where the images of a set are, row by row. In files, as pixels in one array, or as objects in memory."""

# ruff: noqa: ARG002  (the defaults of a store do not use all arguments)

import copy
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepclr.data.decode import decoded, decoder_of, from_pil, reduced, size_of
from stepclr.data.formats import File, UnreadableError, reasons
from stepclr.data.reading import AS_DECLARED, RGB, Reading, channels_words, readable_as
from stepclr.data.recall import Stamp, recall
from stepclr.errors import StepclrError
from stepclr.io import checksum_of
from stepclr.threads import pool

T = TypeVar("T")
Rows = Int64[np.ndarray, " n"]


@dataclass(eq=False, kw_only=True)
class Store(ABC):
    """What an `ImageSet` asks of the place where its images are; a row of the store is one image."""

    reading: Reading = AS_DECLARED
    remarks: dict[int, str] = field(default_factory=dict, repr=False)
    """What images that were read have lost or gained by it, by their row."""
    files = False
    """Whether each row is an image file, which is decoded whenever it is read, by several threads."""
    decoded = False
    """Whether the pixels of each row are at hand, so that reading is only copying."""
    indexed = False
    """Whether an index has all sizes and checksums, so that no image is read for them."""
    sharded = False
    """Whether any images are in shards, of which damaged ones may be skipped."""

    @abstractmethod
    def image(self, row: int, short_side: int | None) -> UInt8[Tensor, "c h w"]:
        """The row's image, reduced to `short_side`. Raises `UnreadableError` if it cannot be read."""

    @abstractmethod
    def size(self, row: int) -> tuple[int, int]:
        """(height, width) of the row's whole image. Raises `UnreadableError` if it cannot be read."""

    def open(self, row: int) -> File | None:
        """The row's image file, open for reading; None if the store has no files."""
        return None

    def as_array(self) -> NDArray[np.uint8] | None:
        """All rows' images in one array `[n, C, H, W]`, C being 1 for RGB that is gray; None if they are not in one."""
        return None

    def read(self, rows: Rows, short_side: int | None) -> Tensor | list[Tensor | UnreadableError]:
        """Each row's image, or why it cannot be read; one tensor `[n, C, H, W]` if the store has them as one."""
        return attempts(lambda row: self.image(row, short_side), rows, self.files)

    def sizes(self, rows: Rows, remember: bool = True) -> Int64[np.ndarray, "n 2"]:
        """(height, width) of each row's whole image, (0, 0) if it cannot be read.

        remember: files are asked once, and the answers are kept in `$STEPCLR_CACHE`.
        """
        sizes = attempts(self.size, rows, self.files)
        known = [(0, 0) if isinstance(size, UnreadableError) else size for size in sizes]
        return np.array(known, np.int64).reshape(-1, 2)

    def with_sizes(self, known: Mapping[int, tuple[int, int]]) -> "Store":
        """The same store, which gives these sizes of its rows instead of reading them from files."""
        return self

    def note(self, row: int, remark: str) -> None:
        """Keep a remark on a row that was read, if there is one."""
        if remark:
            self.remarks[row] = remark

    def read_as(self, reading: Reading) -> "Store":
        """The same store, whose files are read so."""
        store = copy.copy(self)
        store.reading, store.remarks = reading, {}
        return store

    def checksums(self, rows: Rows, memory: Path | None = None) -> list[str]:
        """A checksum of each row's file, or of its pixels if it has none.

        memory: the folder that remembers the checksums of files; by default that of `$STEPCLR_CACHE`.
        """
        return [checksum_of(self.image(row, None).numpy().tobytes()) for row in rows.tolist()]

    def known_checksums(self, rows: Rows, memory: Path | None = None) -> list[str] | None:
        """`checksums` if no image has to be read for them, else None."""
        return None

    def release(self) -> None:
        """After a batch was read, free memory that only repeats what a file contains."""
        return

    def expect(self, following: Mapping[int, Sequence[int]]) -> None:
        """Announce which shards will soon be read after each shard, so that they can be fetched early."""
        return


class Files(Store):
    """Images in files of any kind, which a subclass can open."""

    files = True

    @abstractmethod
    def open(self, row: int) -> File: ...

    def image(self, row: int, short_side: int | None) -> Tensor:
        with reasons(), self.open(row) as file:
            pixels, remark = decoded(file, short_side, self.reading)
        self.note(row, remark)
        return pixels

    def size(self, row: int) -> tuple[int, int]:
        with reasons(), self.open(row) as file:
            return size_of(file, self.reading)


class LocalFiles(Files):
    """Files of this machine, whose sizes are remembered by their stamps."""

    known_sizes: Mapping[int, tuple[int, int]] | None = None

    @abstractmethod
    def stamped(self, rows: Rows) -> tuple[Path, list[str], list[Stamp]]:
        """(root, paths, stamps) of the rows' files: a file whose stamp has not changed has the same bytes."""

    def sizes(self, rows: Rows, remember: bool = True) -> Int64[np.ndarray, "n 2"]:
        if self.known_sizes is not None:
            return np.array([self.known_sizes[row] for row in rows.tolist()], np.int64).reshape(-1, 2)
        if not remember:
            return super().sizes(rows)

        def ask(i: int) -> str | None:
            with suppress(UnreadableError):
                return "{} {}".format(*self.size(int(rows[i])))
            return None

        # What is too large to be read is said to have no size, so that limit belongs to the question.
        answers = recall(f"sizes, {decoder_of(self.reading)}, {self.reading.limit}", *self.stamped(rows), ask)
        sizes = [[int(side) for side in (answer or "0 0").split()] for answer in answers]
        return np.array(sizes, np.int64).reshape(-1, 2)

    def with_sizes(self, known: Mapping[int, tuple[int, int]]) -> "Store":
        store = copy.copy(self)
        store.known_sizes = known
        return store


@dataclass(eq=False)
class Pixels(Store):
    """Images of one size in an array `[n, C, H, W]`, or `[n, 1, H, W]` for gray RGB; a view or a mapped file, too."""

    array: NDArray[np.uint8]
    decoded = True

    def as_array(self) -> NDArray[np.uint8]:
        return self.array

    def read_as(self, reading: Reading) -> Store:
        channels = self.array.shape[1]
        if not readable_as(channels, reading.bands):
            raise StepclrError(f"the array has images of {channels_words(channels)}, not of {reading.bands}")
        return super().read_as(reading)

    def batch(self, rows: Rows) -> UInt8[Tensor, "n c h w"]:
        images = np.ascontiguousarray(self.array[rows])
        if images.shape[1] < self.reading.bands:
            images = np.repeat(images, RGB, axis=1)
        return torch.from_numpy(images)

    def read(self, rows: Rows, short_side: int | None) -> Tensor | list[Tensor | UnreadableError]:
        return self.batch(rows) if short_side is None else super().read(rows, short_side)

    def image(self, row: int, short_side: int | None) -> Tensor:
        return reduced(self.batch(np.array([row]))[0], short_side)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self.array.shape[2:]
        return height, width

    def release(self) -> None:
        release_pages(self.array)


@dataclass(eq=False)
class Packed(Store):
    """Decoded images of many sizes end to end in `pixels`; image i is `[C, *shapes[i]]` from `starts[i]`."""

    pixels: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    starts: NDArray[np.int64]
    decoded = True

    def read_as(self, reading: Reading) -> Store:
        held = self.reading.bands
        if reading.bands != held:
            raise StepclrError(f"the images were decoded with {channels_words(held)}, not with {reading.bands}")
        return super().read_as(reading)

    def image(self, row: int, short_side: int | None) -> Tensor:
        height, width = self.size(row)
        start = self.starts[row]
        shape = self.reading.bands, height, width
        pixels = np.array(self.pixels[start : start + math.prod(shape)])
        return reduced(torch.from_numpy(pixels.reshape(shape)), short_side)

    def size(self, row: int) -> tuple[int, int]:
        return int(self.shapes[row, 0]), int(self.shapes[row, 1])

    def release(self) -> None:
        release_pages(self.pixels)


@dataclass(eq=False)
class Items(Store):
    """Images that are read one by one, never by several threads: of a torch Dataset, or of a list of tensors."""

    items: Any

    def image(self, row: int, short_side: int | None) -> Tensor:
        with reasons(of_file=False):
            item = self.items[row]
            item = item[0] if isinstance(item, tuple | list) else item
            if isinstance(item, Image.Image):
                item, remark = from_pil(item, self.reading)
                self.note(row, remark)
            return reduced(as_image(item, self.reading), short_side)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self.image(row, None).shape[1:]
        return height, width


def as_image(item: object, reading: Reading = AS_DECLARED) -> UInt8[Tensor, "c h w"]:
    """A Dataset's image as RGB: from a PIL image, a uint8 tensor `[3, H, W]` or an array `[H, W, 3]`, gray or not.

    With C channels, by `reading`, from those of C bands: a tensor `[C, H, W]` or an array `[H, W, C]`.
    """
    if isinstance(item, Image.Image):
        return from_pil(item, reading)[0]
    if not isinstance(item, Tensor | np.ndarray):
        raise UnreadableError(f"an image must be a PIL image or a uint8 tensor, not {type(item).__name__}")
    if item.dtype not in (torch.uint8, np.uint8):
        raise UnreadableError(f"an image must be uint8 (0 to 255), not {item.dtype}; leave out its transform")
    image = item if isinstance(item, Tensor) else torch.from_numpy(np.array(item))
    if image.ndim == 2:
        image = image[None]
    elif isinstance(item, np.ndarray) and image.ndim == 3:
        image = image.permute(2, 0, 1)
    bands = reading.bands
    if image.ndim != 3 or 0 in image.shape or not readable_as(image.shape[0], bands):
        raise UnreadableError(f"an image must be [{bands}, H, W] (or an array [H, W, {bands}]), not {list(item.shape)}")
    return image.cpu().expand(bands, -1, -1).contiguous()


def attempts(ask: Callable[[int], T], rows: Rows, threads: bool) -> list[T | UnreadableError]:
    """The answer for each row, or why there is none."""

    def attempt(row: int) -> T | UnreadableError:
        try:
            return ask(row)
        except UnreadableError as reason:
            return type(reason)(str(reason))  # without the traceback, whose frames would keep files open

    each = pool().map if threads and len(rows) > 1 else map
    return list(each(attempt, rows.tolist()))


def release_pages(array: NDArray[np.uint8]) -> None:
    """If the array is a file mapped for reading only, its pages leave this process; the system may keep them."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    # A private map that can be written would lose what was written to it.
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and memoryview(base).readonly:
        base.madvise(mmap.MADV_DONTNEED)
