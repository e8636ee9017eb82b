"""`ImageSet`: n images, wherever they lie, with their labels and names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepclr.data.cache import from_cache, header_sizes, in_memory
from stepclr.data.decode import UnreadableError, reduced_sizes
from stepclr.data.order import ShardOrder
from stepclr.data.shards.index import Names
from stepclr.data.stores import Encoded, Packed, Pixels, Store, fetch, sizes
from stepclr.errors import StepclrError, choose
from stepclr.io import user_folder, write_csv
from stepclr.threads import Progress

Indices = Sequence[int | np.integer[Any]] | NDArray[np.integer[Any]] | NDArray[np.bool_] | Tensor
ImageBatch = UInt8[Tensor, "n 3 h w"] | list[Tensor]


@dataclass(eq=False, repr=False)
class ImageSet:
    """n images, read as uint8 RGB, with their labels; `open_images` makes one.

    Attributes:
        labels: int64 `[n]`, indices into `classes`; -1 where an image has none.
        classes: the names of the classes.
        names: of each image its path relative to the source, or `sample:train/00012` and the like; of shards a
            sequence that reads them when asked.
        source: where the images come from: a path, `sample:train`, `array`, or a Dataset's type.
        skipped: (name, reason) of each image found to be unreadable so far.
    """

    store: Store
    rows: NDArray[np.int64]
    """Which row of the store each image is."""
    labels: NDArray[np.int64]
    classes: list[str]
    names: list[str] | Names
    source: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    short_side: int | None = None
    """Images are reduced to this short side when read, pixels."""
    chosen: list[str] | None = None
    """The classes that `keep` chose; None where nothing was chosen."""
    starts: NDArray[np.int64] | None = None
    """Where each shard's images begin, and the last ones end, `[S + 1]`; None where they do not lie in shards."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"ImageSet({self.source!r}, {len(self)} images, {len(self.classes)} classes)"

    def read(self, indices: Indices) -> ImageBatch:
        """The images, uint8 `[n, 3, H, W]` where their sizes agree, else a list of `[3, H, W]`.

        Raises `StepclrError` that names the first image that cannot be read.
        """
        at = self._positions(indices)
        images = self._fetch(at)
        for i, image in zip(at, images, strict=True):
            if isinstance(image, UnreadableError):
                raise StepclrError(f"{self.source}: {self.names[i]} cannot be read: {image}") from image
        return _stack(images)

    def read_readable(self, indices: Indices) -> tuple[ImageBatch, Int64[np.ndarray, " kept"]]:
        """`read` without the images that cannot be read, which `skipped` lists, and the indices of the others."""
        at = self._positions(indices)
        images = self._fetch(at)
        broken = {i: str(p) for i, p in zip(at.tolist(), images, strict=True) if isinstance(p, UnreadableError)}
        if broken:
            self.skipped = self._skipped_and(broken)
        return _stack(images), at[[i not in broken for i in at.tolist()]]

    def list_skipped(self, path: Path) -> None:
        """Write a CSV of (path, reason) of every image found to be unreadable so far; no file where there is none."""
        if self.skipped:
            write_csv(path, [("path", "reason"), *self.skipped])

    def class_name(self, index: int) -> str | None:
        """The class of an image; None if it has no label."""
        label = int(self.labels[index])
        return self.classes[label] if label >= 0 else None

    def sizes(self) -> Int64[np.ndarray, "n 2"]:
        """(height, width) of each image as `read` gives it, (0, 0) where it cannot be read.

        Of an image in a file only the header is looked at, once: `$STEPCLR_CACHE` remembers what it said.
        """
        if isinstance(self.store, Encoded):
            found = header_sizes(self.store, self.rows, user_folder("STEPCLR_CACHE", "decoded"))
            return reduced_sizes(found, self.short_side)
        return sizes(self.store, self.rows, self.short_side)

    def take(self, indices: Indices) -> ImageSet:
        """The set of these images, in this order."""
        at = self._positions(indices)
        names = self.names.take(at) if isinstance(self.names, Names) else [self.names[i] for i in at]
        in_order = bool((at[1:] > at[:-1]).all())
        return replace(
            self,
            rows=self.rows[at],
            labels=self.labels[at],
            names=names,
            skipped=list(self.skipped),
            starts=np.searchsorted(at, self.starts) if self.starts is not None and in_order else None,
        )

    def stream(
        self, seed: int, epoch: int, batch_size: int, start: int = 0
    ) -> Iterator[Int64[np.ndarray, " batch"]] | None:
        """The images of batch `start` of an epoch and of those after it, in the order that shards are read best in.

        It is `ShardOrder`'s, a function of (seed, epoch, batch_size) alone. None where images do not lie in shards.
        """
        if self.starts is None:
            return None
        order = ShardOrder(self.starts, seed, epoch, batch_size)
        if isinstance(self.store, Encoded) and self.store.expect:
            self.store.expect(order.following())
        return order.batches(start)

    def names_digest(self) -> str:
        """SHA-256 of the names, as hexadecimal digits; of shards, that of their checksums, which stand for more."""
        if isinstance(self.names, Names):
            return self.names.digest()
        return hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape")).hexdigest()

    def keep(self, classes: str | Iterable[str]) -> ImageSet:
        """The labelled images of these classes: names, or one string with commas. Their order gives labels 0..C-1.

        Raises `StepclrError` for an unknown class, and on a set that has no labels.
        """
        if not (self.labels >= 0).any():
            raise StepclrError(f"{self.source} has no labels to choose classes by")
        if isinstance(classes, str):
            classes = [classes] if classes in self.classes else [name.strip() for name in classes.split(",")]
        wanted = [choose(f"class of {self.source}", name, self.classes) for name in dict.fromkeys(classes)]
        new_label = np.full(len(self.classes), -1)
        new_label[[self.classes.index(name) for name in wanted]] = np.arange(len(wanted))
        labels = np.where(self.labels >= 0, new_label[self.labels], -1)
        if (labels < 0).all():
            raise StepclrError(f"{self.source} has no image of {', '.join(wanted) or 'no class at all'}")
        return replace(self.take(labels >= 0), labels=labels[labels >= 0], classes=wanted, chosen=wanted)

    def decoded(
        self,
        short_side: int,
        budget: int = 4 * 2**30,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> ImageSet:
        """The readable images, decoded once and kept at a short side of at most `short_side` pixels, never enlarged.

        Files and zips go to a memory-mapped file in `cache_dir` (default `$STEPCLR_CACHE`, else
        `~/.cache/stepclr/decoded`; deleting it is safe), found again by the files' content; a Dataset and large
        arrays go to memory. A set that takes more than `budget` bytes is decoded each time it is read, to the same
        pixels. `progress` is called with (images done, images in all).

        Unreadable images are left out and listed in `skipped`. Raises `StepclrError` if none is left.
        """
        smaller = min(short_side, self.short_side or short_side)
        if not len(self) or (self._kept_as_is() and self.sizes().min(axis=1).max() <= smaller):
            return self
        if isinstance(self.store, Encoded):
            folder = Path(cache_dir) if cache_dir else user_folder("STEPCLR_CACHE", "decoded")
            found = from_cache(self.store, self.rows, smaller, budget, folder, progress)
        else:
            found = in_memory(self.store, self.rows, smaller, budget, progress)
        if found is None:
            return replace(self, short_side=smaller, skipped=list(self.skipped))
        skipped = self._skipped_and(found.reasons)
        if not len(found.kept):
            raise StepclrError(f"{self.source}: no image can be read; the first, {': '.join(skipped[0])}")
        rows = np.arange(len(found.kept))
        return replace(self.take(found.kept), store=found.store, rows=rows, skipped=skipped, short_side=None)

    def _kept_as_is(self) -> bool:
        """Whether the images lie decoded and are handed out as they lie."""
        return isinstance(self.store, Pixels | Packed) and self.short_side is None

    def _fetch(self, at: NDArray[np.int64]) -> Tensor | list[Tensor | UnreadableError]:
        if isinstance(self.store, Pixels) and self._kept_as_is():
            return self.store.batch(self.rows[at])
        return fetch(self.store, self.rows[at], self.short_side)

    def _positions(self, indices: Indices) -> NDArray[np.int64]:
        at = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        at = np.flatnonzero(at) if at.dtype == np.bool_ else at.astype(np.int64)
        if ((at < -len(self)) | (at >= len(self))).any():
            raise IndexError(f"an index is outside the {len(self)} images of {self.source}")
        return at % max(1, len(self))

    def _skipped_and(self, broken: Mapping[int, str]) -> list[tuple[str, str]]:
        listed = {name for name, _ in self.skipped}
        new = {self.names[i]: why for i, why in broken.items() if self.names[i] not in listed}
        return [*self.skipped, *new.items()]


def _stack(images: Tensor | Sequence[Tensor | UnreadableError]) -> ImageBatch:
    if isinstance(images, Tensor):
        return images
    tensors = [image for image in images if isinstance(image, Tensor)]
    if not tensors:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return torch.stack(tensors) if len({image.shape for image in tensors}) == 1 else tensors
