"""Render on a GPU: all views of a batch at once, with no look back from the device, and compiled.

The same parameters as in `render.py`, and its ops to within 1/255, even with TF32 allowed: every op is computed for
every view, and where it was not drawn it changes nothing. So no shape depends on what was drawn, the host never waits
for the device, and the whole can be compiled into a few kernels or recorded as a CUDA graph. What was drawn crosses to
the device as one tensor. On a CPU the other renderers are faster.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from stepclr.views.color import hue, luma
from stepclr.views.ops import CONTRAST, HUE, SATURATION, BlurDraws, Drawn, GreyDraws, JitterDraws, TableDraws, WarpDraws
from stepclr.views.reference import Interpolation, bicubic, blur_kernel, cut_out, render
from stepclr.views.sample import Draws
from stepclr.views.warp import bilinear, thin_plate_field

WIDTHS: dict[type[Drawn], tuple[int, ...]] = {  # numbers of a view in each field of what was drawn
    JitterDraws: (1, 4, 4),
    GreyDraws: (1,),
    BlurDraws: (1,),
    WarpDraws: (1, 8, 14),
}
Kinds = tuple[type[Drawn], ...]
COMPILE_FROM = 3  # batches of a shape: compiling takes longer than the first of them
SHAPES = 6  # that are compiled; more come only where batches are cut to images of many sizes


def render_batched(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    draws: Sequence[Draws],
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "v n 3 s s"]:
    """V views of each image, float32 in [0, 1], within 1/255 of what `render` makes of the same draws.

    Compiled on CUDA from a shape's third batch on. AutoAugment and RandAugment have no batched form: `render` does it.
    """
    kinds: Kinds = tuple(type(drawn) for drawn in draws[0].ops)
    if TableDraws in kinds:
        return torch.stack([render(images, view, size, interpolation) for view in draws])
    if not isinstance(images, Tensor):
        return torch.cat([_of_unequal(images, view, kinds, size, interpolation) for view in draws])
    return _fastest(images)(images, to_device(flatten(draws), images.device), kinds, size, interpolation)


def flatten(draws: Sequence[Draws]) -> Float[np.ndarray, "v n k"]:
    """All that was drawn as one array, a row for each view of each image: box, flip, then the fields of each op.

    float64: of a warp's weights, which can be large and nearly cancel, float32 would move pixels.
    """
    return np.stack([_rows(view) for view in draws])


def _rows(view: Draws) -> Float[np.ndarray, "n k"]:
    n = len(view.box)
    parts = [view.box, view.flip, *(getattr(drawn, field.name) for drawn in view.ops for field in fields(drawn))]
    return np.concatenate([part.reshape(n, -1) for part in parts], axis=1, dtype=np.float64)


def to_device(array: Num[np.ndarray, "*shape"], device: torch.device) -> Num[Tensor, "*shape"]:
    """The array on `device`; to CUDA from page-locked memory, so that nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def render_numbers(
    images: UInt8[Tensor, "n 3 height width"],
    numbers: Float[Tensor, "v n k"],
    kinds: Kinds,
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "v n 3 s s"]:
    """The views that `flatten`'s numbers describe; kinds: of the ops that they are of, in their order.

    A function of tensors alone, without a shape that depends on their values.
    """
    views, n, _ = numbers.shape
    box, flip, *drawn = numbers.split([4, 1, *(sum(WIDTHS[kind]) for kind in kinds)], dim=2)
    with torch.autocast(images.device.type, enabled=False):
        x = _crop_resize_flip(images, box, flip, size, interpolation)
        for kind, part in zip(kinds, drawn, strict=True):
            x = CHANGES[kind](x, *part.flatten(0, 1).split(WIDTHS[kind], dim=1))
        return x.view(views, n, 3, size, size)


def _crop_resize_flip(
    images: UInt8[Tensor, "n 3 height width"],
    box: Float[Tensor, "v n 4"],
    flip: Float[Tensor, "v n 1"],
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "m 3 s s"]:
    """Two products of matrices for each image, rows first: the image itself is read once for all its views."""
    views, n, _ = box.shape
    height, width = images.shape[2:]
    top, left, down, across = box.float().transpose(0, 1).unbind(2)  # [n, v] each
    rows = _weights(top, down, height, size, interpolation)
    columns = _weights(left, across, width, size, interpolation)
    columns = torch.where(flip.transpose(0, 1)[..., None] > 0, columns.flip(2), columns)
    x = images.permute(0, 2, 1, 3).float().reshape(n, height, 3 * width)
    x = rows.reshape(n, views * size, height) @ x
    x = x.view(n * views, size * 3, width) @ columns.reshape(n * views, size, width).mT
    x = x.view(n, views, size, 3, size).permute(1, 0, 3, 2, 4) / 255
    return x.clamp(0, 1).reshape(views * n, 3, size, size)


def _weights(
    start: Float[Tensor, "n v"], length: Float[Tensor, "n v"], side: int, size: int, interpolation: Interpolation
) -> Float[Tensor, "n v s side"]:
    """Filter weights that take pixels start .. start + length of a line of `side` pixels to `size`, as `render`'s."""
    start, length = start[..., None, None], length[..., None, None]
    pixel = torch.arange(side, device=start.device, dtype=torch.float32) - start
    output = torch.arange(size, device=start.device, dtype=torch.float32)[:, None]
    scale = length / size
    distance = ((pixel + 0.5 - (output + 0.5) * scale) / scale.clamp(min=1)).abs()
    kernel = bicubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    kernel = torch.where((pixel >= 0) & (pixel < length), kernel, 0.0)
    return kernel / kernel.sum(-1, keepdim=True)


def _jitter(
    x: Float[Tensor, "m 3 s s"],
    jitter: Float[Tensor, "m 1"],
    factors: Float[Tensor, "m 4"],
    order: Float[Tensor, "m 4"],
) -> Float[Tensor, "m 3 s s"]:
    """Brightness, contrast and saturation are all a blend of x with something: nothing, its mean grey, its grey."""
    for turn in range(4):
        which = order[:, turn : turn + 1].long()
        factor = torch.where(jitter > 0, factors.gather(1, which).float(), 1.0)[..., None, None]
        which = torch.where(jitter > 0, which, -1)[..., None, None]
        grey = luma(x).unsqueeze(1)
        other = torch.where(which == SATURATION, grey, grey.mean((2, 3), keepdim=True) * (which == CONTRAST))
        share = torch.where(which == HUE, 1.0, factor)
        turned = hue(x, torch.where(which == HUE, factor, 0.0))
        x = torch.where(which == HUE, turned, (x * share + other * (1 - share)).clamp(0, 1))
    return x


def _grey(x: Float[Tensor, "m 3 s s"], grey: Float[Tensor, "m 1"]) -> Float[Tensor, "m 3 s s"]:
    return torch.where(grey[..., None, None] > 0, luma(x).unsqueeze(1), x)


def _blur(x: Float[Tensor, "m 3 s s"], sigma: Float[Tensor, "m 1"]) -> Float[Tensor, "m 3 s s"]:
    """As `gaussian_blur`; a view that was not drawn has all its weight on the middle tap."""
    side = x.shape[-1]
    radius = blur_kernel(side) // 2
    tap = torch.arange(-radius, radius + 1, device=x.device)
    taps = torch.where(sigma > 0, torch.exp(-0.5 * (tap / sigma.clamp(min=1e-3)) ** 2), (tap == 0).to(sigma))
    weights = (taps / taps.sum(1, keepdim=True)).float()[:, :, None, None, None]
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(x, pad, mode="reflect")
        x = padded.narrow(axis, 0, side) * weights[:, 0]
        for at in range(1, 2 * radius + 1):
            x = x + padded.narrow(axis, at, side) * weights[:, at]
    return x


def _warp(
    x: Float[Tensor, "m 3 s s"],
    warp: Float[Tensor, "m 1"],
    knots: Float[Tensor, "m 8"],
    weights: Float[Tensor, "m 14"],
) -> Float[Tensor, "m 3 s s"]:
    """As `sparse_image_warp`; the field of a view that was not drawn is 0."""
    size = x.shape[-1]
    index = torch.arange(size, dtype=torch.float64, device=x.device)
    pixels = torch.stack([index.repeat_interleave(size), index.repeat(size)], dim=1)
    field = thin_plate_field(knots.view(-1, 4, 2), weights.view(-1, 7, 2), pixels / size)
    return bilinear(x, (pixels - field * (size * warp[..., None])).clamp(0, size - 1))


CHANGES: dict[type[Drawn], Callable[..., Tensor]] = {
    JitterDraws: _jitter,
    GreyDraws: _grey,
    BlurDraws: _blur,
    WarpDraws: _warp,
}


def _of_unequal(
    images: Sequence[Tensor], draws: Draws, kinds: Kinds, size: int, interpolation: Interpolation
) -> Float[Tensor, "1 n 3 s s"]:
    """One view of images whose sizes differ: their boxes in a batch, its sides rounded up so that few shapes come."""
    cut, box = cut_out(images, draws.box)
    cut = F.pad(cut, (0, -cut.shape[3] % size, 0, -cut.shape[2] % size))
    numbers = to_device(flatten([Draws(box, draws.flip, draws.ops)]), cut.device)
    return _fastest(cut)(cut, numbers, kinds, size, interpolation)


def _fastest(images: Tensor) -> Callable[..., Tensor]:
    """`render_numbers` itself, or compiled where that pays: on CUDA, for shapes that come again and again."""
    if not compiles(images.device):
        return render_numbers
    _met[images.shape] += 1
    often = [shape for shape, times in _met.items() if times >= COMPILE_FROM]
    return _compiled() if images.shape in often[:SHAPES] else render_numbers


_met: Counter[torch.Size] = Counter()


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(render_numbers, dynamic=False)


@cache
def compiles(device: torch.device) -> bool:
    """Whether torch.compile works for this device: on CUDA where Triton and a C compiler are there. Else it warns."""
    if device.type != "cuda":
        return False
    try:
        torch.compile(_twice)(torch.ones(8, device=device))
    except Exception as error:  # a compiler's absence shows in many ways
        logging.getLogger(__name__).warning("torch.compile does not work here, and views take longer: %s", error)
        return False
    return True


def _twice(x: Tensor) -> Tensor:
    return x * 2
