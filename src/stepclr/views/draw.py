"""Draw: keys -> the parameters of one view of each picture (SimCLR App. A). CPU only, about 40 numbers a view."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from numpy.typing import NDArray

from stepclr.views.keys import uniforms

ATTEMPTS = 10  # at a crop that fits into the picture, as in torchvision and the authors' code
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Draws:
    """What was drawn for one view of N pictures; `render` turns it into pixels."""

    box: Int[np.ndarray, "n 4"]  # top, left, height, width in pixels of the picture
    flip: Bool[np.ndarray, " n"]
    jitter: Bool[np.ndarray, " n"]
    factors: Float[np.ndarray, "n 4"]  # brightness, contrast, saturation: factors; hue: shift in turns
    order: Int[np.ndarray, "n 4"]  # which of the four comes first, second, ...
    grey: Bool[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]  # of the blur, in pixels of the view; 0: none


def draw(
    keys: Int64[np.ndarray, " n"],
    view: int,
    sizes: Int[np.ndarray, "n 2"],
    colour: bool,
    strength: float,
    blur: float,
    min_area: float,
) -> Draws:
    """Draw view number `view` of pictures with these (height, width), as functions of their keys alone.

    colour: whether jitter, grey and blur happen at all. strength: s of the colour jitter. blur: its probability.
    min_area: smallest area of the crop as a share of the picture.
    """
    u = uniforms(keys, view, 2 * ATTEMPTS + 15)
    area, aspect = u[:, :ATTEMPTS], u[:, ATTEMPTS : 2 * ATTEMPTS]
    rest = u[:, 2 * ATTEMPTS :]
    spread = 0.8 * strength
    factors = np.maximum(1 - spread, 0) + rest[:, 4:7] * (1 + spread - np.maximum(1 - spread, 0))
    hue = (2 * rest[:, 7:8] - 1) * 0.2 * strength
    blurred = colour & (rest[:, 13] < blur)
    return Draws(
        box=_boxes(area, aspect, rest[:, 0:2], sizes, min_area),
        flip=rest[:, 2] < 0.5,
        jitter=colour & (rest[:, 3] < 0.8),
        factors=np.concatenate([factors, hue], axis=1),
        order=np.argsort(rest[:, 8:12], axis=1, kind="stable"),
        grey=colour & (rest[:, 12] < 0.2),
        sigma=np.where(blurred, 0.1 + 1.9 * rest[:, 14], 0.0),
    )


def _boxes(
    area: NDArray[np.float64],
    aspect: NDArray[np.float64],
    place: NDArray[np.float64],
    sizes: NDArray[np.int64],
    min_area: float,
) -> NDArray[np.int64]:
    """Crop boxes: area U(min_area, 1), aspect log-uniform in 3/4 to 4/3, the first attempt that fits into the picture.

    Where none does, the largest centred box whose aspect lies in that range.
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
