"""Which images occur more than once, within a set or in two: identical ones, and versions of each other."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from stepclr.data.details import GRAY_PX, gray_thumbnails, near_pairs
from stepclr.data.images import ImageSet
from stepclr.errors import StepclrError
from stepclr.io import checksum_of

Pairs = list[tuple[int, int]]  # indices of images
EQUAL = 0.995  # least similarity of the thumbnails of equal images that were read from two formats
CHUNK = 32  # images that are read at a time


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What the readable images of a set are compared by.

    indices: where these images are in the set. keys: checksums of each image. Two images whose first ones are equal are
    the same; if only later ones are, all pixels have to be compared. sizes: (height, width). thumbnails: as made by
    `gray_thumbnails`.
    """

    images: ImageSet
    indices: list[int]
    keys: list[tuple[bytes, ...]]
    sizes: Int64[np.ndarray, "n 2"]
    thumbnails: UInt8[Tensor, "n side side"]


def fingerprints(images: ImageSet) -> Fingerprints:
    """Fingerprints of images that are decoded already: equal pixels are the same image."""
    indices: list[int] = []
    keys: list[tuple[bytes, ...]] = []
    sizes: list[tuple[int, int]] = []
    thumbnails = [torch.empty(0, GRAY_PX, GRAY_PX, dtype=torch.uint8)]
    for start in range(0, len(images), CHUNK):
        batch, kept = images.read_readable(range(start, min(start + CHUNK, len(images))))
        indices += kept.tolist()
        for image in batch:
            height, width = image.shape[1:]
            sizes.append((height, width))
            keys.append((f"{height} {width} {checksum_of(image.numpy().tobytes())}".encode(),))
        groups = [batch] if isinstance(batch, Tensor) else [image[None] for image in batch]
        thumbnails += [gray_thumbnails(group) for group in groups if len(group)]
    return Fingerprints(images, indices, keys, np.array(sizes, np.int64).reshape(-1, 2), torch.cat(thumbnails))


def copies(some: Fingerprints, others: Fingerprints | None = None, near: bool = True) -> tuple[Pairs, Pairs]:
    """Pairs (i, j) of identical images, and pairs of images that are versions of each other (`details.near_pairs`).

    Without `others`, i and j are images of one set. An image that is identical to an earlier one is paired with that
    one alone. With `others`, j is one of these, and each i is in at most one pair, with the image most like it.
    near: whether to look for versions, which takes time in proportion to the number of all pairs.
    """
    bank = others or some
    first: dict[bytes, int] = {}
    if others:
        for j, keys in enumerate(others.keys):
            _enter(first, keys, j)
    exact: Pairs = []
    unique: list[int] = []
    for i, keys in enumerate(some.keys):
        same = _known(first, some, i, bank)
        if same is None:
            unique.append(i)
        else:
            exact.append((i, same))
        if not others:
            _enter(first, keys, i)
    versions: Pairs = []
    if near and unique and bank.keys:
        for i, j, cosine in _near(some, unique, others):
            # A PNG of a JPEG has the same pixels, but may have other ones when it is read at a reduced size.
            equal = cosine > EQUAL and _equal(some, i, bank, j)
            (exact if equal else versions).append((i, j))
    return _of_images(exact, some, bank), _of_images(versions, some, bank)


def _near(some: Fingerprints, unique: list[int], others: Fingerprints | None) -> Iterator[tuple[int, int, float]]:
    """The near pairs (i, j) of the `unique` images and their cosine: all, or of each i the first with `others`."""
    pairs, cosines = near_pairs(some.thumbnails[unique], others.thumbnails if others else None)
    seen: set[int] = set()
    for row in np.argsort(-cosines, kind="stable").tolist():  # the most alike first
        i, j = pairs[row].tolist()
        if others is None:
            yield unique[i], unique[j], float(cosines[row])
        elif i not in seen:
            yield unique[i], j, float(cosines[row])
            seen.add(i)


def _enter(first: dict[bytes, int], keys: tuple[bytes, ...], i: int) -> None:
    for key in keys:
        first.setdefault(key, i)


def _known(first: dict[bytes, int], some: Fingerprints, i: int, bank: Fingerprints) -> int | None:
    """The first image of `bank` that is identical to image i, by a certain checksum or by all pixels."""
    certain, *likely = some.keys[i]
    if certain in first:
        return first[certain]
    for key in likely:
        if key in first and _equal(some, i, bank, first[key]):
            return first[key]
    return None


def _equal(some: Fingerprints, i: int, bank: Fingerprints, j: int) -> bool:
    if tuple(some.sizes[i]) != tuple(bank.sizes[j]):
        return False
    try:
        return torch.equal(some.images.read([some.indices[i]])[0], bank.images.read([bank.indices[j]])[0])
    except StepclrError:  # deleted since
        return False


def _of_images(pairs: Pairs, some: Fingerprints, bank: Fingerprints) -> Pairs:
    return sorted((some.indices[i], bank.indices[j]) for i, j in pairs)
