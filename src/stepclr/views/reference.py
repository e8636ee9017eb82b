"""Render: images and sampled parameters -> pixels, in plain torch on any device. The reference for other renderers.

The result is the same, bit for bit, whatever else is in the batch and however many threads work. Resizing sums integers
in float64, where every order of summation gives the same result; a mean is taken over integers; everything else works
on each pixel by itself in single IEEE operations (not fused ones, which libraries apply in some positions only).
`color.py`, `warp.py` and `autoaugment.py` follow the same rules.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from stepclr.views import geometry, ops
from stepclr.views.autoaugment import apply_table_op
from stepclr.views.color import ChannelJitterParams, channel_jitter, chosen_rows, color_jitter, luma
from stepclr.views.sample import ViewParams
from stepclr.views.warp import sparse_image_warp

Images = UInt8[Tensor, "n c height width"] | Sequence[UInt8[Tensor, "c _ _"]]  # of one size, or of several
Interpolation = Literal["bicubic", "bilinear"]
CHUNK = 2**19  # numbers rendered at a time: a chunk stays in a processor's cache
FIXED = 2.0**20  # filter weights are multiples of 1/FIXED: 8 + 21 + 21 bits and the sums' growth fit float64's 53


def render_reference(
    images: Images, params: ViewParams, size: int, interpolation: Interpolation = "bicubic"
) -> Float[Tensor, "n c s s"]:
    """One view of each image, float32 in [0, 1]: crop and resize, flip, then each op with its parameters."""
    chunks = []
    step = max(1, CHUNK // (len(images[0]) * size * size))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        x = crop_resize_flip(images[rows], params.box[rows], params.flip[rows], size, interpolation)
        for op in params.ops:
            apply_op(x, ops.take(op, rows))
        chunks.append(x)
    return torch.cat(chunks)


def apply_op(x: Float[Tensor, "n c s s"], params: ops.OpParams) -> None:
    """Apply one op to each view that its parameters choose. In place."""
    match params:
        case ops.JitterParams():
            color_jitter(x, params.jitter, params.factors, params.order)
        case ChannelJitterParams():
            channel_jitter(x, params)
        case ops.GrayscaleParams():
            rows = chosen_rows(params.gray, x)
            x[rows] = luma(x[rows]).unsqueeze(1).expand(-1, 3, -1, -1)
        case ops.BlurParams():
            blurred = params.sigma > 0
            rows = chosen_rows(blurred, x)
            if len(rows):
                x[rows] = gaussian_blur(x[rows], params.sigma[blurred])
        case ops.WarpParams():
            rows = chosen_rows(params.warp, x)
            if len(rows):
                x[rows] = sparse_image_warp(x[rows], params.knots[params.warp], params.weights[params.warp])
        case ops.TableParams():
            levels = (x * 255).round().to(torch.uint8)
            for op, magnitude in zip(params.op.T, params.magnitude.T, strict=True):
                apply_table_op(levels, op, magnitude)
            x.copy_(levels.to(x) / 255)
        case ops.LevelParams():
            changed = params.op > 0
            rows = chosen_rows(changed, x)
            levels = (x[rows] * 255).round().to(torch.uint8)
            apply_table_op(levels, params.op[changed], params.magnitude[changed])
            x[rows] = levels.to(x) / 255
        case geometry.TurnParams():
            for turn in range(1, geometry.UPSIDE_DOWN + 1):
                rows = chosen_rows(params.turn == turn, x)
                x[rows] = geometry.turned(x[rows], turn)
        case geometry.RotateParams():
            rows = chosen_rows(params.rotate, x)
            x[rows] = geometry.rotated(x[rows], torch.from_numpy(params.direction[params.rotate]).to(x.device))
        case geometry.EraseParams():
            erase, box = (torch.from_numpy(part).to(x.device) for part in (params.erase, params.box))
            x.copy_(geometry.erased(x, erase, box))


def crop_resize_flip(
    images: Images, box: Int[np.ndarray, "n 4"], flip: Bool[np.ndarray, " n"], size: int, interpolation: Interpolation
) -> Float[Tensor, "n c s s"]:
    """The box of each image, resized to S x S with antialiasing, mirrored where `flip` says so, clipped to [0, 1].

    The filter never reaches outside the box: taps beyond its edge are left out, and the others share their weight.
    """
    if not isinstance(images, Tensor):
        images, box = cut_out(images, box)
    boxes = torch.from_numpy(box).to(images.device)
    mirrored = torch.from_numpy(flip).to(images.device)
    n, channels, height, width = images.shape
    rows = _fixed_weights(boxes[:, 0], boxes[:, 2], height, size, interpolation)
    columns = _fixed_weights(boxes[:, 1], boxes[:, 3], width, size, interpolation)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    with torch.autocast(images.device.type, enabled=False):
        x = images.permute(0, 2, 1, 3).double().reshape(n, height * channels, width) @ columns.mT
        x = (rows @ x.view(n, height, channels * size)).view(n, size, channels, size).permute(0, 2, 1, 3)
    return (x / (255 * FIXED**2)).float().clamp_(0, 1).contiguous()


def cut_out(
    images: Sequence[UInt8[Tensor, "c _ _"]], box: Int[np.ndarray, "n 4"]
) -> tuple[UInt8[Tensor, "n c height width"], Int64[np.ndarray, "n 4"]]:
    """Images of different sizes -> their boxes in the top left corners of a zero-padded batch, and the boxes there."""
    batch = images[0].new_zeros(len(images), len(images[0]), int(box[:, 2].max()), int(box[:, 3].max()))
    for row, image, (top, left, height, width) in zip(batch, images, box.tolist(), strict=True):
        row[:, :height, :width] = image[:, top : top + height, left : left + width]
    return batch, np.concatenate([np.zeros_like(box[:, :2]), box[:, 2:]], axis=1)


def _fixed_weights(
    start: Int[Tensor, " n"], length: Int[Tensor, " n"], side: int, size: int, interpolation: Interpolation
) -> Float[Tensor, "n s side"]:
    """`filter_weights` that sum to 1 in whole multiples of 1/FIXED, so that sums of pixels are exact."""
    weights = (filter_weights(start.double(), length.double(), side, size, interpolation) * FIXED).round()
    return (weights * (FIXED / weights.sum(2, keepdim=True))).round()


def filter_weights(
    start: Float[Tensor, "*n"], length: Float[Tensor, "*n"], side: int, size: int, interpolation: Interpolation
) -> Float[Tensor, "*n s side"]:
    """Weights, before they are scaled to sum to 1, that resize pixels start to start + length of a line to `size`.

    The line has `side` pixels. The filters are PIL's and torch's antialiased ones: where the image shrinks, the kernel
    is stretched by the scale.
    """
    start, length = start[..., None, None], length[..., None, None]
    pixel = torch.arange(side, device=start.device, dtype=start.dtype) - start
    output = torch.arange(size, device=start.device, dtype=start.dtype)[:, None]
    scale = length / size
    distance = ((pixel + 0.5 - (output + 0.5) * scale) / scale.clamp(min=1)).abs()
    kernel = _bicubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    return torch.where((pixel >= 0) & (pixel < length), kernel, 0.0)


def _bicubic(d: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Keys' cubic convolution kernel with a = -1/2, which PIL and torch use for antialiased resizing."""
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def gaussian_blur(x: Float[Tensor, "n c s s"], sigma: Float[np.ndarray, " n"]) -> Float[Tensor, "n c s s"]:
    """Separable Gaussian: one sigma (in pixels) for each image, a kernel of S // 10 made odd, mirrored edges."""
    radius = blur_kernel(x.shape[-1]) // 2
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdims=True)
    return filtered(x, torch.from_numpy(taps).to(x))


def filtered(x: Float[Tensor, "n c s s"], taps: Float[Tensor, "n k"]) -> Float[Tensor, "n c s s"]:
    """Each image filtered with its own k taps along its rows, then along its columns; edges are mirrored."""
    side, radius = x.shape[-1], taps.shape[1] // 2
    weights = taps[:, :, None, None, None]
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(x, pad, mode="reflect")
        x = padded.narrow(axis, 0, side) * weights[:, 0]
        for tap in range(1, 2 * radius + 1):
            x += padded.narrow(axis, tap, side) * weights[:, tap]
    return x


def blur_kernel(size: int) -> int:
    """Side of the blur's kernel at view size S, in pixels: S // 10, made odd (3 at 32, 9 at 96, 23 at 224)."""
    return size // 10 + (size // 10 + 1) % 2
