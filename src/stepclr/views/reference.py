"""Render: images and drawn parameters -> pixels, batched, in plain torch on any device. The reference renderer.

Bit for bit the same whatever else is in the batch and however many threads work: resizing sums integers in float64,
where every order of summation gives the same result; a mean is taken over integers; all else works on each pixel by
itself, in single IEEE operations (no fused ones, which libraries apply to some positions only). `color.py`, `warp.py`
and `levels.py` keep to the same rules.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepclr.views.color import chosen_rows, color_jitter, luma
from stepclr.views.levels import change_levels
from stepclr.views.ops import BlurDraws, Drawn, GreyDraws, JitterDraws, TableDraws, WarpDraws, take
from stepclr.views.sample import Draws
from stepclr.views.warp import sparse_image_warp

Interpolation = Literal["bicubic", "bilinear"]
CHUNK = 2**19  # numbers rendered at a time: what a chunk touches stays in a processor's cache
FIXED = 2.0**20  # filter weights are multiples of 1/FIXED: 8 + 21 + 21 bits and the sums' growth fit float64's 53


def render(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    draws: Draws,
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "n 3 s s"]:
    """One view of each image, float32 in [0, 1]: crop and resize, flip, then each op as drawn."""
    chunks = []
    step = max(1, CHUNK // (3 * size * size))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        x = crop_resize_flip(images[part], draws.box[part], draws.flip[part], size, interpolation)
        for drawn in draws.ops:
            change(x, take(drawn, part))
        chunks.append(x)
    return torch.cat(chunks)


def change(x: Float[Tensor, "n 3 s s"], drawn: Drawn) -> None:
    """One op on each view that it was drawn for. In place."""
    match drawn:
        case JitterDraws():
            color_jitter(x, drawn.jitter, drawn.factors, drawn.order)
        case GreyDraws():
            rows = chosen_rows(drawn.grey, x)
            if len(rows):
                x[rows] = luma(x[rows]).unsqueeze(1).expand(-1, 3, -1, -1)
        case BlurDraws():
            blurred = drawn.sigma > 0
            rows = chosen_rows(blurred, x)
            if len(rows):
                x[rows] = gaussian_blur(x[rows], drawn.sigma[blurred])
        case WarpDraws():
            rows = chosen_rows(drawn.warp, x)
            if len(rows):
                x[rows] = sparse_image_warp(x[rows], drawn.knots[drawn.warp], drawn.weights[drawn.warp])
        case TableDraws():
            levels = (x * 255).round().to(torch.uint8)
            for op, magnitude in zip(drawn.op.T, drawn.magnitude.T, strict=True):
                change_levels(levels, op, magnitude)
            x.copy_(levels.to(x) / 255)


def crop_resize_flip(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    box: Int[np.ndarray, "n 4"],
    flip: Bool[np.ndarray, " n"],
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "n 3 s s"]:
    """Box of each image, resized to S x S with antialiasing, mirrored where asked, clipped to [0, 1].

    The filter never reaches outside the box: taps beyond its edge are left out and the others share their weight.
    """
    if not isinstance(images, Tensor):
        images, box = cut_out(images, box)
    boxes = torch.from_numpy(box).to(images.device)
    mirrored = torch.from_numpy(flip).to(images.device)
    n, _, height, width = images.shape
    rows = _weights(boxes[:, 0], boxes[:, 2], height, size, interpolation)
    columns = _weights(boxes[:, 1], boxes[:, 3], width, size, interpolation)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    with torch.autocast(images.device.type, enabled=False):
        x = images.permute(0, 2, 1, 3).double().reshape(n, height * 3, width) @ columns.mT
        x = (rows @ x.view(n, height, 3 * size)).view(n, size, 3, size).permute(0, 2, 1, 3)
    return (x / (255 * FIXED**2)).float().clamp_(0, 1).contiguous()


def cut_out(images: Sequence[Tensor], box: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Images of unequal sizes -> their boxes in the top left corners of a zero-padded batch, and the boxes there."""
    batch = images[0].new_zeros(len(images), 3, int(box[:, 2].max()), int(box[:, 3].max()))
    for row, image, (top, left, height, width) in zip(batch, images, box.tolist(), strict=True):
        row[:, :height, :width] = image[:, top : top + height, left : left + width]
    return batch, np.concatenate([np.zeros_like(box[:, :2]), box[:, 2:]], axis=1)


def _weights(
    start: Int[Tensor, " n"], length: Int[Tensor, " n"], side: int, size: int, interpolation: Interpolation
) -> Float[Tensor, "n s side"]:
    """Filter weights that take pixels start .. start + length of a line of `side` pixels to `size`: integers / FIXED.

    PIL's and torch's antialiased filters: the kernel is stretched by the scale where the image shrinks.
    """
    start, length = start.double()[:, None, None], length.double()[:, None, None]
    pixel = torch.arange(side, device=start.device, dtype=torch.float64)[None, None, :] - start
    output = torch.arange(size, device=start.device, dtype=torch.float64)[None, :, None]
    scale = length / size
    distance = ((pixel + 0.5 - (output + 0.5) * scale) / scale.clamp(min=1)).abs()
    kernel = bicubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    kernel = torch.where((pixel >= 0) & (pixel < length), kernel, 0.0)
    kernel = (kernel * FIXED).round()  # integers, so that their sum is exact too
    return (kernel * (FIXED / kernel.sum(2, keepdim=True))).round()


def bicubic(d: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Keys' cubic convolution kernel with a = -1/2, the one that PIL and torch use when antialiasing."""
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def gaussian_blur(x: Float[Tensor, "n 3 s s"], sigma: Float[np.ndarray, " n"]) -> Float[Tensor, "n 3 s s"]:
    """Separable Gaussian, one sigma (pixels) an image, kernel side S // 10 made odd, edges mirrored."""
    side = x.shape[-1]
    radius = blur_kernel(side) // 2
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdims=True)
    weights = torch.from_numpy(taps).to(x)[:, :, None, None, None]
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(x, pad, mode="reflect")
        x = padded.narrow(axis, 0, side) * weights[:, 0]
        for tap in range(1, 2 * radius + 1):
            x += padded.narrow(axis, tap, side) * weights[:, tap]
    return x


def blur_kernel(size: int) -> int:
    """Side of the blur's kernel at view size S, in pixels: S // 10, made odd (3 at 32, 9 at 96, 23 at 224)."""
    return size // 10 + (size // 10 + 1) % 2
