"""Draw: keys -> the parameters of one view of each image: its crop and flip, then those of each op. CPU only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64
from numpy.typing import NDArray

from stepclr.views.keys import uniforms
from stepclr.views.ops import Drawn, Op

ATTEMPTS = 10  # at a crop that fits into the image, as in torchvision and the authors' code
CROP_NUMBERS = 2 * ATTEMPTS + 3


@dataclass(frozen=True)
class Draws:
    """What was drawn for one view of N images; `render` turns it into pixels."""

    box: Int[np.ndarray, "n 4"]  # top, left, height, width in pixels of the image
    flip: Bool[np.ndarray, " n"]
    ops: tuple[Drawn, ...]  # in the order in which they come


def draw(
    keys: Int64[np.ndarray, " n"],
    view: int,
    sizes: Int[np.ndarray, "n 2"],
    min_area: float,
    ops: Sequence[Op],
    size: int,
) -> Draws:
    """Draw view number `view`, of side `size`, of images with these (height, width): functions of their keys alone.

    The crop takes the first random numbers of each key, then each op its own in turn. min_area: smallest area of the
    crop as a share of the image.
    """
    ends = np.cumsum([CROP_NUMBERS, *(op.numbers for op in ops)])
    crop, *others = np.split(uniforms(keys, view, int(ends[-1])), ends[:-1], axis=1)
    area, aspect, rest = np.split(crop, [ATTEMPTS, 2 * ATTEMPTS], axis=1)
    return Draws(
        box=_boxes(area, aspect, rest[:, 0:2], sizes, min_area),
        flip=rest[:, 2] < 0.5,
        ops=tuple(op.draw(u, size) for op, u in zip(ops, others, strict=True)),
    )


def _boxes(
    area: NDArray[np.float64],
    aspect: NDArray[np.float64],
    place: NDArray[np.float64],
    sizes: NDArray[np.int64],
    min_area: float,
) -> NDArray[np.int64]:
    """Crop boxes: area U(min_area, 1), aspect log-uniform in 3/4 to 4/3, the first attempt that fits into the image.

    Where none does, the largest centerd box whose aspect lies in that range.
    """
    height, width = sizes[:, 0], sizes[:, 1]
    target = (min_area + (1 - min_area) * area) * (height * width)[:, None]
    ratio = np.exp((2 * aspect - 1) * np.log(4 / 3))
    w = np.rint(np.sqrt(target * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(target / ratio)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
    first = np.arange(len(sizes)), fits.argmax(1)
    found = fits[first]
    w = np.where(found, w[first], np.minimum(width, np.rint(height * 4 / 3).astype(np.int64)))
    h = np.where(found, h[first], np.minimum(height, np.rint(width * 4 / 3).astype(np.int64)))
    top = np.where(found, (place[:, 0] * (height - h + 1)).astype(np.int64), (height - h) // 2)
    left = np.where(found, (place[:, 1] * (width - w + 1)).astype(np.int64), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1)
