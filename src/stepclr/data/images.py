"""`ImageSet`: n images, wherever they are stored, with their labels and names."""

from __future__ import annotations

import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stepclr.data.cache import from_cache, in_memory
from stepclr.data.decode import reduced_sizes
from stepclr.data.formats import UnreadableError
from stepclr.data.ledger import Ledger
from stepclr.data.order import ShardOrder
from stepclr.data.reading import Range, Reading
from stepclr.data.stores import Store
from stepclr.errors import StepclrError, choose
from stepclr.io import user_folder
from stepclr.threads import Progress

Indices = Sequence[int | np.integer[Any]] | NDArray[np.integer[Any]] | NDArray[np.bool_] | Tensor
ImageBatch = UInt8[Tensor, "n c h w"] | list[Tensor]  # C is 3, RGB, unless `channels` says otherwise


class Names(Sequence[str], ABC):
    """Names that are read when asked for, of images that lie in groups and are best read group by group."""

    @abstractmethod
    def take(self, indices: Int64[np.ndarray, " m"]) -> Names:
        """The names of these images."""

    @abstractmethod
    def checksum(self) -> str:
        """A checksum that stands for the names and for what is in the images."""

    @abstractmethod
    def order(self, seed: int, epoch: int, batch_size: int) -> ShardOrder | None:
        """The order of an epoch; None where the images are not in the order of their groups."""


@dataclass(frozen=True, eq=False)
class Labeling:
    """What tables say about all images of a source, also those that are not in the set."""

    labeled: dict[str, int]
    """How many images got a label from which table."""
    rows: dict[str, tuple[str, str]]
    """(label, split) of each image that has a row, by its name; "" for none."""
    has_splits: bool
    replaced: bool
    """Whether the source had labels of its own."""
    split: str | None = None
    """The split that the images are of; None: of both."""
    missing: str = ""
    """Which paths of the tables are not in the source, in words."""


@dataclass(eq=False, repr=False)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """n images with their labels: a torch `Dataset` of (uint8 RGB `[3, H, W]`, label). `open_images` makes one.

        images = stepclr.open_images("sample:train")
        image, label = images[0]                              # uint8 [3, 28, 28], int; -1: no label
        batch = images.read([0, 5])                           # uint8 [2, 3, 28, 28]
        loader = torch.utils.data.DataLoader(images, batch_size=256, shuffle=True, num_workers=2)

    Attributes:
        labels: int64 `[n]`, indices into `classes`; -1 where an image has none.
        classes: the names of the classes.
        channels: C of each image, 3 for RGB; of an image of C channels, 3 stands for C in the shapes here.
        names: the path of each image relative to the source, or a name such as `sample:train/00012`; of shards a
            sequence that reads them when asked.
        source: where the images come from: a path, `sample:train`, `array`, or a Dataset's type.
        ledger: what was skipped, ignored or changed under the source; shared by all sets that are made of this one.
    """

    store: Store
    rows: NDArray[np.int64]
    """Which row of the store each image is."""
    labels: NDArray[np.int64]
    classes: list[str]
    names: list[str] | Names
    source: str
    ledger: Ledger = field(default_factory=Ledger)
    short_side: int | None = None
    """Images are reduced to this short side when read, pixels."""
    chosen: list[str] | None = None
    """The classes that `keep` chose; None where nothing was chosen."""
    labeling: Labeling | None = None
    """The tables that the labels are from; None where they are the source's own."""
    parts: tuple[str, ...] = ()
    """The sources, where there are several; image files are given one by one."""
    limit: int | None = None
    """How many images of the source `open_images` was to take; None where it was to take all, or some were since."""

    def __post_init__(self) -> None:
        # Systems write an accented letter in two ways. The class is the same, also where a set has both.
        names = [unicodedata.normalize("NFC", name) for name in self.classes]
        if names != self.classes:
            self.classes = list(dict.fromkeys(names))
            number = np.array([self.classes.index(name) for name in names])
            self.labels = np.where(self.labels >= 0, number[self.labels], -1)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of each image of the source found to be unreadable so far."""
        return list(self.ledger.unreadable.items())

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"ImageSet({self.source!r}, {len(self)} images, {len(self.classes)} classes)"

    def __getitem__(self, index: SupportsIndex) -> tuple[UInt8[Tensor, "c h w"], int]:
        """(image uint8 `[3, H, W]`, label); the label is -1 where the image has none.

        Raises `StepclrError` with the image's name if it cannot be read.
        """
        return self.read([int(index)])[0], int(self.labels[index])

    def read(self, indices: Indices) -> ImageBatch:
        """The images, uint8 `[n, 3, H, W]` where their sizes agree, else a list of `[3, H, W]`.

        Raises `StepclrError` with the name of the first image that cannot be read.
        """
        indices = self._checked(indices)
        images = self._read(indices)
        if isinstance(images, Tensor):
            return images
        for i, image in zip(indices.tolist(), images, strict=True):
            if isinstance(image, UnreadableError):
                raise StepclrError(f"{self.source}: {self.names[i]} cannot be read: {image}") from image
        return _stack(images, self.channels)

    def read_readable(self, indices: Indices) -> tuple[ImageBatch, Int64[np.ndarray, " kept"]]:
        """`read` without the images that cannot be read, which `skipped` lists, and the indices of the others."""
        indices = self._checked(indices)
        images = self._read(indices)
        self.store.release()
        if isinstance(images, Tensor):
            return images, indices
        broken = {}
        for i, image in zip(indices.tolist(), images, strict=True):
            if isinstance(image, UnreadableError):
                broken[i] = str(image)
        self._enter(broken)
        return _stack(images, self.channels), indices[[i not in broken for i in indices.tolist()]]

    def class_name(self, index: int) -> str | None:
        """The class of an image; None if it has no label."""
        label = int(self.labels[index])
        return self.classes[label] if label >= 0 else None

    def sizes(self) -> Int64[np.ndarray, "n 2"]:
        """(height, width) of each image as `read` gives it, (0, 0) where it cannot be read.

        Only the header of an image file is read, and only once: `$STEPCLR_CACHE` remembers the sizes.
        """
        return reduced_sizes(self.store.sizes(self.rows), self.short_side)

    def take(self, indices: Indices) -> ImageSet:
        """The set of these images, in this order."""
        indices = self._checked(indices)
        names = [self.names[i] for i in indices] if isinstance(self.names, list) else self.names.take(indices)
        rows, labels = self.rows[indices], self.labels[indices]
        return replace(self, rows=rows, labels=labels, names=names, limit=None)

    @property
    def value_range(self) -> Range | None:
        """The numbers that are black and white, as the images were opened with; None: what each file declares."""
        return self.store.reading.value_range

    @property
    def channels(self) -> int:
        """Channels C of each image: 3, RGB, unless the images were opened with others."""
        return self.store.reading.bands

    def read_as(self, reading: Reading) -> ImageSet:
        """The same images, whose files are read so; what `reading` leaves open or is not about them stays as it is.

        Raises `StepclrError` for another number of channels than the images of an array have.
        """
        if not self.store.sharded:
            reading = replace(reading, damaged_shards=None)
        reading = self.store.reading.changed(reading)
        return self if reading == self.store.reading else replace(self, store=self.store.read_as(reading))

    def stream(
        self, seed: int, epoch: int, batch_size: int, start: int = 0
    ) -> Iterator[Int64[np.ndarray, " batch"]] | None:
        """The indices of batch `start` of an epoch and of later ones, in the order in which shards are read best.

        The order is a function of (seed, epoch, batch_size) alone. None if the images are not in shards.
        """
        order = None if isinstance(self.names, list) else self.names.order(seed, epoch, batch_size)
        if order is None:
            return None
        self.store.expect(order.following())
        return order.batches(start)

    def names_checksum(self) -> str:
        """SHA-256 of the names, in hexadecimal; of shards, that of their checksums, which also cover the contents."""
        if isinstance(self.names, list):
            # The path of a file that was given by itself depends on the current folder.
            given = {self.source, *self.parts}
            names = [name.rpartition("/")[2] if name in given else name for name in self.names]
            return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
        return self.names.checksum()

    def labels_checksum(self) -> str:
        """SHA-256 of the classes and the labels, in hexadecimal."""
        names = "\0".join(self.classes).encode(errors="surrogateescape")
        return hashlib.sha256(names + b"\0" + self.labels.astype("<i8").tobytes()).hexdigest()

    def keep(self, classes: str | Iterable[str]) -> ImageSet:
        """The labeled images of these classes: names, or one string with commas. Their order gives labels 0..C-1.

        Raises `StepclrError` for an unknown class, and on a set that has no labels.
        """
        if not (self.labels >= 0).any():
            raise StepclrError(f"{self.source} has no labels to choose classes by")
        names = class_names(classes, self.classes)
        wanted = [choose(f"class of {self.source}", name, self.classes) for name in names]
        new_label = np.full(len(self.classes), -1)
        new_label[[self.classes.index(name) for name in wanted]] = np.arange(len(wanted))
        labels = np.where(self.labels >= 0, new_label[self.labels], -1)
        if (labels < 0).all():
            raise StepclrError(f"{self.source} has no image of {', '.join(wanted) or 'no class at all'}")
        return replace(self.take(labels >= 0), labels=labels[labels >= 0], classes=wanted, chosen=wanted)

    def openable(self) -> ImageSet:
        """The images of files whose headers can be read; the others are listed in `skipped`. Shards stay whole."""
        if not self.store.files or self.store.sharded:
            return self
        broken = np.flatnonzero(self.store.sizes(self.rows)[:, 0] == 0)
        if not len(broken):
            return self
        read = zip(broken.tolist(), self.store.read(self.rows[broken], self.short_side), strict=True)
        self._enter({i: str(error) for i, error in read if isinstance(error, UnreadableError)})
        return self.take(np.setdiff1d(np.arange(len(self)), broken))

    def decoded(
        self,
        short_side: int,
        budget: int = 4 * 2**30,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> ImageSet:
        """The readable images, decoded once and kept at a short side of at most `short_side` pixels, never enlarged.

        Images of files are written to a memory-mapped file in `cache_dir` (default `$STEPCLR_CACHE`, else
        `~/.cache/stepclr/decoded`; it may be deleted), which later calls find by the images' checksums; those of a
        Dataset and of large arrays go to memory. A set that takes more than `budget` bytes is decoded each time it is
        read, to the same pixels. `progress` is called with (images done, images in all).

        Unreadable images are left out and listed in `skipped`. Raises `StepclrError` if no image can be read.
        """
        smaller = min(short_side, self.short_side or short_side)
        as_stored = self.store.decoded and self.short_side is None
        if not len(self) or (as_stored and self.sizes().min(axis=1).max() <= smaller):
            return self
        if self.store.files:
            folder = Path(cache_dir) if cache_dir else user_folder("STEPCLR_CACHE", "decoded")
            decoded = from_cache(self.store, self.rows, smaller, budget, folder, progress)
        else:
            decoded = in_memory(self.store, self.rows, smaller, budget, progress)
        if decoded is None:  # too large to keep: each image is reduced whenever it is read
            return replace(self, short_side=smaller)
        self._enter(decoded.reasons)
        for i, text in decoded.remarks.items():
            self.ledger.remarks[self.names[i]] = text
        if not len(decoded.kept):
            raise StepclrError(f"{self.source}: no image can be read; the first, {': '.join(self.skipped[0])}")
        rows = np.arange(len(decoded.kept))
        return replace(self.take(decoded.kept), store=decoded.store, rows=rows, short_side=None)

    def _checked(self, indices: Indices) -> Int64[np.ndarray, " m"]:
        """The indices as an array, none of them negative. Raises IndexError for one that is outside the set."""
        given = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        array = np.flatnonzero(given) if given.dtype == np.bool_ else given.astype(np.int64)
        if ((array < -len(self)) | (array >= len(self))).any():
            raise IndexError(f"an index is outside the {len(self)} images of {self.source}")
        return array % max(1, len(self))

    def _read(self, indices: Int64[np.ndarray, " m"]) -> Tensor | list[Tensor | UnreadableError]:
        """`read` of the store; what its images have lost or gained is entered in the ledger."""
        rows = self.rows[indices]
        images = self.store.read(rows, self.short_side)
        if self.store.remarks:
            for i, row in zip(indices.tolist(), rows.tolist(), strict=True):
                if row in self.store.remarks:
                    self.ledger.remarks[self.names[i]] = self.store.remarks[row]
        return images

    def _enter(self, broken: Mapping[int, str]) -> None:
        """Enter images that cannot be read, with their reasons, in the ledger."""
        self.ledger.unreadable |= {self.names[i]: why for i, why in broken.items()}


def class_names(given: str | Iterable[str], known: Sequence[str]) -> list[str]:
    """The names of classes, given one by one or in one string with commas; each once."""
    names = _split_names(given, known) if isinstance(given, str) else given
    return list(dict.fromkeys(unicodedata.normalize("NFC", name) for name in names))


def _split_names(text: str, known: Sequence[str]) -> list[str]:
    """The names in a list with commas. A known name may contain commas itself: the longest one is meant."""
    parts = unicodedata.normalize("NFC", text).split(",")
    names = []
    while parts:
        length = len(parts)
        while length > 1 and ",".join(parts[:length]).strip() not in known:
            length -= 1
        names.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return names


def _stack(images: Sequence[Tensor | UnreadableError], channels: int) -> ImageBatch:
    """The images that could be read, in one tensor if their sizes agree."""
    tensors = [image for image in images if isinstance(image, Tensor)]
    if not tensors:
        return torch.empty(0, channels, 0, 0, dtype=torch.uint8)
    return torch.stack(tensors) if len({image.shape for image in tensors}) == 1 else tensors
