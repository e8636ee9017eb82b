"""Read each image once: whether it is readable, its kind, its size, checksums of bytes and pixels, a thumbnail."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepclr.data.decode import decoded, kind_of, reduced, size_of
from stepclr.data.details import GRAY_PX, gray_thumbnail
from stepclr.data.formats import UnreadableError, UnsupportedError, reasons
from stepclr.data.images import ImageSet
from stepclr.data.stores import Store, attempts
from stepclr.io import blake
from stepclr.threads import Progress

DECODED_SIDE = 2 * GRAY_PX  # px, short side to which an image is decoded for its thumbnail
CHUNK = 256  # images between two reports of progress


@dataclass
class ScannedImage:
    """What is known of one image. For one that cannot be read, that is little besides the reason, `why`."""

    size: tuple[int, int] = (0, 0)
    """(height, width), upright, pixels."""
    content: bytes = b""
    """A checksum of its file's bytes."""
    pixels: bytes = b""
    """A checksum of its pixels, reduced to DECODED_SIDE."""
    mode: str = "RGB"
    animated: bool = False
    turned: bool = False
    """Whether its EXIF orientation turns it."""
    blank: bool = False
    """Whether all its pixels have one color."""
    length: int | None = None
    """Its file's length, bytes."""
    why: str = ""
    sound: bool = False
    """Whether a file that is not read is intact, but of a kind that is not supported."""
    remark: str = ""
    """What it loses or gains when it is read."""
    thumbnail: UInt8[Tensor, "side side"] | None = None

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """Equal for images with the same bytes, and for images with the same pixels."""
        return b"bytes" + (self.content or self.pixels), b"pixels" + repr(self.size).encode() + self.pixels


@dataclass
class Scan:
    """A set of images and what is known of each."""

    images: ImageSet
    each: list[ScannedImage]

    @cached_property
    def readable(self) -> NDArray[np.int64]:
        """Indices of the images that can be read."""
        return np.array([i for i, image in enumerate(self.each) if not image.why], np.int64)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(height, width) of each readable image."""
        return np.array([self.each[i].size for i in self.readable], np.int64).reshape(-1, 2)

    def thumbnails(self, indices: list[int]) -> UInt8[Tensor, "n side side"]:
        """The thumbnails of readable images."""
        thumbnails = [thumbnail for i in indices if (thumbnail := self.each[i].thumbnail) is not None]
        return torch.stack(thumbnails) if thumbnails else torch.empty(0, GRAY_PX, GRAY_PX, dtype=torch.uint8)


def scan(images: ImageSet, progress: Progress | None = None) -> Scan:
    """Read every image of the set once and keep none; nothing is written anywhere."""
    each: list[ScannedImage] = []
    for start in range(0, len(images), CHUNK):
        rows = images.rows[start : start + CHUNK]
        results = attempts(lambda row: _scanned(images.store, row), rows, images.store.files)
        for one in results:
            sound = isinstance(one, UnsupportedError)
            each.append(ScannedImage(why=str(one), sound=sound) if isinstance(one, UnreadableError) else one)
        if progress:
            progress(len(each), len(images))
    for i, one in enumerate(each):
        if one.why:
            images.ledger.unreadable[images.names[i]] = one.why
        elif one.remark:
            images.ledger.remarks[images.names[i]] = one.remark

    # The set remembers these sizes, so that they are neither read again nor written into the cache.
    sizes = {row: image.size for row, image in zip(images.rows.tolist(), each, strict=True)}
    return Scan(replace(images, store=images.store.with_sizes(sizes)), each)


def _scanned(store: Store, row: int) -> ScannedImage:
    with reasons():
        file = store.open(row)
    if file is None:
        return _with_pixels(ScannedImage(), store.image(row, None))
    scanned = ScannedImage()
    with reasons(), file:
        scanned.content = hashlib.file_digest(file, blake).digest()
        scanned.length = file.seek(0, os.SEEK_END)
        if not scanned.length:
            scanned.why = "the file is empty"
            return scanned
        try:
            file.seek(0)
            scanned.size = size_of(file, store.reading)
            file.seek(0)
            pixels, scanned.remark = decoded(file, DECODED_SIDE, store.reading)
            file.seek(0)
            scanned.mode, scanned.animated, scanned.turned = kind_of(file, store.reading)
        except UnreadableError as error:
            scanned.why, scanned.sound = str(error), isinstance(error, UnsupportedError)
            return scanned
    size = scanned.size  # of the file; that of `pixels` is reduced
    return replace(_with_pixels(scanned, pixels), size=size)


def _with_pixels(scanned: ScannedImage, image: UInt8[Tensor, "c h w"]) -> ScannedImage:
    checksum = blake(repr(tuple(image.shape)).encode())
    checksum.update(image.contiguous().numpy().data)
    scanned.size = (image.shape[1], image.shape[2])
    scanned.pixels = checksum.digest()
    scanned.blank = bool((image == image[:, :1, :1]).all())
    scanned.thumbnail = gray_thumbnail(reduced(image, DECODED_SIDE))
    return scanned
