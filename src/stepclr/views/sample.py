"""Sample: keys -> the parameters of one view of each image: its crop and flip, then those of each op. CPU only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from stepclr.views.keys import uniforms
from stepclr.views.ops import Op, OpParams

# Attempts at a crop that fits into the image, as in torchvision. The authors' code makes 100, with a uniform aspect.
ATTEMPTS = 10
CROP_NUMBERS = 2 * ATTEMPTS + 3  # random numbers: area and aspect of each attempt; then top, left, flip


@dataclass(frozen=True)
class ViewParams:
    """The parameters of one view of each of N images; a renderer turns them into pixels."""

    box: Int[np.ndarray, "n 4"]  # top, left, height, width in pixels of the image
    flip: Bool[np.ndarray, " n"]
    ops: tuple[OpParams, ...]  # in the order in which they are applied


def sample_params(
    keys: Int64[np.ndarray, " n"],
    view: int,
    sizes: Int[np.ndarray, "n 2"],
    min_area: float,
    flip: float,
    ops: Sequence[Op],
    size: int,
) -> ViewParams:
    """The parameters of view number `view`, of side `size`, of images of these (height, width), from their keys alone.

    The crop takes the first random numbers of each key, then each op takes its own in turn. min_area: smallest area of
    the crop, as a share of the image's area. flip: probability of mirroring it.
    """
    ends = np.cumsum([CROP_NUMBERS, *(op.numbers for op in ops)])
    crop, *of_ops = np.split(uniforms(keys, view, int(ends[-1])), ends[:-1], axis=1)
    area, aspect, rest = np.split(crop, [ATTEMPTS, 2 * ATTEMPTS], axis=1)
    return ViewParams(
        box=_crop_boxes(area, aspect, rest[:, 0:2], sizes, min_area),
        flip=rest[:, 2] < flip,
        ops=tuple(op.sample(u, size) for op, u in zip(ops, of_ops, strict=True)),
    )


def _crop_boxes(
    area: Float[np.ndarray, "n attempts"],
    aspect: Float[np.ndarray, "n attempts"],
    corner: Float[np.ndarray, "n 2"],
    sizes: Int[np.ndarray, "n 2"],
    min_area: float,
) -> Int64[np.ndarray, "n 4"]:
    """Boxes of area U(min_area, 1) and log-uniform aspect in 3/4 to 4/3: the first attempt that fits into the image.

    If none fits, the largest centered box whose aspect lies in that range. All inputs but the sizes are U[0, 1).
    """
    # All attempts are computed, also where the first one fits: which numbers the ops take must not depend on the image.
    height, width = sizes[:, 0], sizes[:, 1]
    target = (min_area + (1 - min_area) * area) * (height * width)[:, None]
    ratio = np.exp((2 * aspect - 1) * np.log(4 / 3))
    w = np.rint(np.sqrt(target * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(target / ratio)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
    first = np.arange(len(sizes)), fits.argmax(1)  # of each image (row), the first attempt (column) that fits
    any_fits = fits[first]
    w = np.where(any_fits, w[first], np.minimum(width, np.rint(height * 4 / 3).astype(np.int64)))
    h = np.where(any_fits, h[first], np.minimum(height, np.rint(width * 4 / 3).astype(np.int64)))
    top = np.where(any_fits, (corner[:, 0] * (height - h + 1)).astype(np.int64), (height - h) // 2)
    left = np.where(any_fits, (corner[:, 1] * (width - w + 1)).astype(np.int64), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1)
