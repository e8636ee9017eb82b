"""Where the pictures of a set lie: encoded in files, as equal-sized pixels in an array, or one by one in memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepclr.data.picture import File, UnreadableError, decode, reasons, reduced, reduced_sizes, size_of, upright_rgb

T = TypeVar("T")


@dataclass(eq=False)
class Encoded:
    """Pictures in files, in a zip or in shards, decoded when read, by several threads."""

    open: Callable[[int], File]
    """The bytes of a row's picture."""
    contents: Callable[[NDArray[np.int64], Path, bool], list[str] | None]
    """(rows, memory folder, may read) -> a fingerprint of each row's bytes; None if they would have to be read."""
    recall: Callable[[str, Callable[[int], str | None], NDArray[np.int64], Path], list[str | None]]
    """(what, ask, rows, memory folder) -> `ask`'s answer for each row, remembered as long as its bytes are the same."""
    known_sizes: Callable[[NDArray[np.int64]], Int64[np.ndarray, "n 2"]] | None = None
    """(height, width) of each row's whole picture, (0, 0) if unreadable, where no header need be looked at for it."""
    expect: Callable[[Mapping[int, Sequence[int]]], None] | None = None
    """Told which shards are soon read after each; where they are fetched from afar."""
    threads = True

    def picture(self, row: int, short_side: int | None) -> Tensor:
        with reasons(), self.open(row) as file:
            return decode(file, short_side)

    def size(self, row: int) -> tuple[int, int]:
        with reasons(), self.open(row) as file:
            return size_of(file)


@dataclass(eq=False)
class Pixels:
    """Pictures of one size in one array `[n, 3, H, W]`, or `[n, 1, H, W]` if grey; it may be a view or a file's map."""

    array: NDArray[np.uint8]
    threads = False

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        pictures = np.ascontiguousarray(self.array[rows])
        if pictures.shape[1] == 1:
            pictures = np.repeat(pictures, 3, axis=1)
        return torch.from_numpy(pictures)

    def picture(self, row: int, short_side: int | None) -> Tensor:
        return reduced(self.batch(np.array([row]))[0], short_side)

    def size(self, row: int) -> tuple[int, int]:  # noqa: ARG002  # one size for all
        height, width = self.array.shape[2:]
        return height, width


@dataclass(eq=False)
class Packed:
    """Decoded pictures of many sizes end to end in `pixels`; picture i is `[3, *sizes[i]]` from `starts[i]`."""

    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    threads = False

    def picture(self, row: int, short_side: int | None) -> Tensor:
        height, width = self.size(row)
        start = self.starts[row]
        pixels = np.array(self.pixels[start : start + 3 * height * width])
        return reduced(torch.from_numpy(pixels.reshape(3, height, width)), short_side)

    def size(self, row: int) -> tuple[int, int]:
        return int(self.sizes[row, 0]), int(self.sizes[row, 1])


@dataclass(eq=False)
class Items:
    """Pictures handed out one by one: a torch Dataset, or a list of decoded ones."""

    items: Any
    threads = False  # nobody promised that a Dataset may be read by several threads

    def picture(self, row: int, short_side: int | None) -> Tensor:
        with reasons():
            item = self.items[row]
            return reduced(as_picture(item[0] if isinstance(item, tuple | list) else item), short_side)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self.picture(row, None).shape[1:]
        return height, width


Store = Encoded | Pixels | Packed | Items


def as_picture(item: object) -> UInt8[Tensor, "3 h w"]:
    """A Dataset's picture as RGB: a PIL picture, a uint8 tensor `[3, H, W]`, an array `[H, W, 3]`, or either grey."""
    if isinstance(item, Image.Image):
        return upright_rgb(item)
    if not isinstance(item, Tensor | np.ndarray):
        raise UnreadableError(f"a picture must be a PIL picture or a uint8 tensor, not {type(item).__name__}")
    if item.dtype not in (torch.uint8, np.uint8):
        raise UnreadableError(f"a picture must be uint8 (0 to 255), not {item.dtype}; leave out its transform")
    picture = item if isinstance(item, Tensor) else torch.from_numpy(np.array(item))
    if picture.ndim == 2:
        picture = picture[None]
    elif isinstance(item, np.ndarray) and picture.ndim == 3:
        picture = picture.permute(2, 0, 1)
    if picture.ndim != 3 or picture.shape[0] not in (1, 3) or 0 in picture.shape:
        raise UnreadableError(f"a picture must be [3, H, W] (or an array [H, W, 3]), not {list(item.shape)}")
    return picture.cpu().expand(3, -1, -1).contiguous()


def fetch(store: Store, rows: NDArray[np.int64], short_side: int | None) -> list[Tensor | UnreadableError]:
    """Each row's picture `[3, H, W]`, or why there is none."""
    return attempts(lambda row: store.picture(row, short_side), rows, store.threads)


def sizes(store: Store, rows: NDArray[np.int64], short_side: int | None) -> Int64[np.ndarray, "n 2"]:
    """(height, width) of each row's picture once reduced to `short_side`; (0, 0) where it cannot be read."""
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


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that read and decode, one a core, shared with other ranks here; their number changes no pixel."""
    return ThreadPoolExecutor(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), "stepclr-read")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked process does not inherit threads
