"""Where the images of a set lie: encoded in files, as equal-sized pixels in an array, or one by one in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepclr.data.decode import File, UnreadableError, decode, reasons, reduced, reduced_sizes, size_of, upright_rgb
from stepclr.threads import pool

T = TypeVar("T")


@dataclass(eq=False)
class Encoded:
    """Images in files, in a zip or in shards, decoded when read, by several threads."""

    open: Callable[[int], File]
    """The bytes of a row's image."""
    contents: Callable[[NDArray[np.int64], Path, bool], list[str] | None]
    """(rows, memory folder, may read) -> a fingerprint of each row's bytes; None if they would have to be read."""
    recall: Callable[[str, Callable[[int], str | None], NDArray[np.int64], Path], list[str | None]]
    """(what, ask, rows, memory folder) -> `ask`'s answer for each row, remembered as long as its bytes are the same."""
    known_sizes: Callable[[NDArray[np.int64]], Int64[np.ndarray, "n 2"]] | None = None
    """(height, width) of each row's whole image, (0, 0) if unreadable, where no header need be looked at for it."""
    expect: Callable[[Mapping[int, Sequence[int]]], None] | None = None
    """Told which shards are soon read after each; where they are fetched from afar."""
    threads = True

    def image(self, row: int, short_side: int | None) -> Tensor:
        with reasons(), self.open(row) as file:
            return decode(file, short_side)

    def size(self, row: int) -> tuple[int, int]:
        with reasons(), self.open(row) as file:
            return size_of(file)


@dataclass(eq=False)
class Pixels:
    """Images of one size in one array `[n, 3, H, W]`, or `[n, 1, H, W]` if grey; it may be a view or a file's map."""

    array: NDArray[np.uint8]
    threads = False

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        images = np.ascontiguousarray(self.array[rows])
        if images.shape[1] == 1:
            images = np.repeat(images, 3, axis=1)
        return torch.from_numpy(images)

    def image(self, row: int, short_side: int | None) -> Tensor:
        return reduced(self.batch(np.array([row]))[0], short_side)

    def size(self, row: int) -> tuple[int, int]:  # noqa: ARG002  # one size for all
        height, width = self.array.shape[2:]
        return height, width


@dataclass(eq=False)
class Packed:
    """Decoded images of many sizes end to end in `pixels`; image i is `[3, *sizes[i]]` from `starts[i]`."""

    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    threads = False

    def image(self, row: int, short_side: int | None) -> Tensor:
        height, width = self.size(row)
        start = self.starts[row]
        pixels = np.array(self.pixels[start : start + 3 * height * width])
        return reduced(torch.from_numpy(pixels.reshape(3, height, width)), short_side)

    def size(self, row: int) -> tuple[int, int]:
        return int(self.sizes[row, 0]), int(self.sizes[row, 1])


@dataclass(eq=False)
class Items:
    """Images handed out one by one: a torch Dataset, or a list of decoded ones."""

    items: Any
    threads = False  # nobody promised that a Dataset may be read by several threads

    def image(self, row: int, short_side: int | None) -> Tensor:
        with reasons():
            item = self.items[row]
            return reduced(as_image(item[0] if isinstance(item, tuple | list) else item), short_side)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self.image(row, None).shape[1:]
        return height, width


Store = Encoded | Pixels | Packed | Items


def as_image(item: object) -> UInt8[Tensor, "3 h w"]:
    """A Dataset's image as RGB: a PIL image, a uint8 tensor `[3, H, W]`, an array `[H, W, 3]`, or either grey."""
    if isinstance(item, Image.Image):
        return upright_rgb(item)
    if not isinstance(item, Tensor | np.ndarray):
        raise UnreadableError(f"an image must be a PIL image or a uint8 tensor, not {type(item).__name__}")
    if item.dtype not in (torch.uint8, np.uint8):
        raise UnreadableError(f"an image must be uint8 (0 to 255), not {item.dtype}; leave out its transform")
    image = item if isinstance(item, Tensor) else torch.from_numpy(np.array(item))
    if image.ndim == 2:
        image = image[None]
    elif isinstance(item, np.ndarray) and image.ndim == 3:
        image = image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise UnreadableError(f"an image must be [3, H, W] (or an array [H, W, 3]), not {list(item.shape)}")
    return image.cpu().expand(3, -1, -1).contiguous()


def fetch(store: Store, rows: NDArray[np.int64], short_side: int | None) -> list[Tensor | UnreadableError]:
    """Each row's image `[3, H, W]`, or why there is none."""
    return attempts(lambda row: store.image(row, short_side), rows, store.threads)


def sizes(store: Store, rows: NDArray[np.int64], short_side: int | None) -> Int64[np.ndarray, "n 2"]:
    """(height, width) of each row's image once reduced to `short_side`; (0, 0) where it cannot be read."""
    if isinstance(store, Encoded) and store.known_sizes:
        return reduced_sizes(store.known_sizes(rows), short_side)
    found = attempts(store.size, rows, store.threads)
    known = [(0, 0) if isinstance(size, UnreadableError) else size for size in found]
    return reduced_sizes(np.array(known, np.int64).reshape(-1, 2), short_side)


def attempts(ask: Callable[[int], T], rows: NDArray[np.int64], threads: bool) -> list[T | UnreadableError]:
    """Each row's answer, or why there is none."""

    def attempt(row: int) -> T | UnreadableError:
        try:
            return ask(row)
        except UnreadableError as reason:
            return reason

    each = pool().map if threads and len(rows) > 1 else map
    return list(each(attempt, rows.tolist()))
