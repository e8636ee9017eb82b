"""One look at each image: can it be read, what kind is it, what are its bytes, its pixels and its thumbnail."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import ExifTags
from torch import Tensor

from stepclr.data.decode import UnreadableError, decode, opened, reasons, reduced, size_of
from stepclr.data.images import ImageSet
from stepclr.data.stores import Store, attempts
from stepclr.io import blake
from stepclr.tools.images import GRAY_PX, gray_thumbnail

LOOKED_AT = 2 * GRAY_PX  # px, short side to which an image is decoded for its thumbnail
CHUNK = 256


@dataclass
class Seen:
    """What a look at one image found; `why` it cannot be read, if so, and then little else."""

    size: tuple[int, int] = (0, 0)
    """(height, width), upright, pixels."""
    content: bytes = b""
    """A digest of its file's bytes."""
    pixels: bytes = b""
    """A digest of its pixels, reduced to LOOKED_AT."""
    mode: str = "RGB"
    animated: bool = False
    turned: bool = False
    """Whether its EXIF orientation turns it."""
    blank: bool = False
    """Whether all its pixels have one color."""
    length: int | None = None
    """Its file's length."""
    why: str = ""
    small: UInt8[Tensor, "side side"] | None = None

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """By which an image with the same bytes, or the same pixels, is found."""
        return b"bytes" + (self.content or self.pixels), b"pixels" + repr(self.size).encode() + self.pixels


@dataclass
class Look:
    """All that was seen of a set."""

    images: ImageSet
    each: list[Seen]

    @cached_property
    def readable(self) -> NDArray[np.int64]:
        """Indices of the images that can be read."""
        return np.array([i for i, seen in enumerate(self.each) if not seen.why], np.int64)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(height, width) of each readable image."""
        return np.array([self.each[i].size for i in self.readable], np.int64).reshape(-1, 2)

    @cached_property
    def thumbnails(self) -> UInt8[Tensor, "n side side"]:
        """Of each readable image."""
        found = [small for seen in self.each if (small := seen.small) is not None]
        return torch.stack(found) if found else torch.empty(0, GRAY_PX, GRAY_PX, dtype=torch.uint8)


def look(images: ImageSet, progress: Callable[[int, int], None] | None = None) -> Look:
    """Read every image of the set once, keeping none; nothing is written anywhere."""
    each: list[Seen] = []
    for start in range(0, len(images), CHUNK):
        rows = images.rows[start : start + CHUNK]
        found = attempts(lambda row: _seen(images.store, row), rows, images.store.files)
        each += [Seen(why=str(seen)) if isinstance(seen, UnreadableError) else seen for seen in found]
        if progress:
            progress(len(each), len(images))
    # The set takes the sizes that were seen, instead of reading them again and writing them into the cache.
    sizes = {row: seen.size for row, seen in zip(images.rows.tolist(), each, strict=True)}
    return Look(replace(images, store=images.store.with_sizes(sizes)), each)


def _seen(store: Store, row: int) -> Seen:
    with reasons():
        file = store.open(row)
    if file is None:
        return _pixels(Seen(), store.image(row, None))
    seen = Seen()
    with reasons(), file:
        seen.content = hashlib.file_digest(file, blake).digest()
        seen.length = file.seek(0, os.SEEK_END)
        if not seen.length:
            seen.why = "the file is empty"
            return seen
        try:
            file.seek(0)
            seen.size = size_of(file)
            file.seek(0)
            pixels = decode(file, LOOKED_AT)
            file.seek(0)
            with opened(file) as image:
                seen.mode, seen.animated = image.mode, getattr(image, "is_animated", False)
                with suppress(Exception):  # broken EXIF data does not make an image unreadable
                    seen.turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        except UnreadableError as error:
            seen.why = str(error)
            return seen
    size = seen.size
    return replace(_pixels(seen, pixels), size=size)


def _pixels(seen: Seen, image: UInt8[Tensor, "3 h w"]) -> Seen:
    digest = hashlib.blake2b(repr(tuple(image.shape)).encode(), digest_size=16)
    digest.update(image.contiguous().numpy().data)
    seen.size = (image.shape[1], image.shape[2])
    seen.pixels = digest.digest()
    seen.blank = bool((image == image[:, :1, :1]).all())
    seen.small = gray_thumbnail(reduced(image, LOOKED_AT))
    return seen
