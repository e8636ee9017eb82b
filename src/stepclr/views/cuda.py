"""Render on a GPU: all views of a batch at once, compiled, without waiting for the device.

The same parameters as for `reference.py`, and its pixels to within 1/255, even if TF32 is allowed. Every op is computed
for every view, and changes nothing where the parameters do not choose it. Because no shape depends on a parameter, the
host never waits for the device, and everything can be compiled into a few kernels or recorded as a CUDA graph. The
parameters are copied to the device as one tensor. On a CPU the other renderers are faster.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stepclr.device import compiles, to_device
from stepclr.views import geometry, ops
from stepclr.views.autoaugment import EQUALIZE, POSTERIZE, SOLARIZE, posterize, solarize
from stepclr.views.color import CONTRAST, HUE, SATURATION, adjust_hue, luma
from stepclr.views.reference import Interpolation, blur_kernel, cut_out, filter_weights, filtered, render_reference
from stepclr.views.sample import ViewParams
from stepclr.views.warp import sparse_image_warp

# How many numbers each field of an op's parameters has for a view.
WIDTHS: dict[type[ops.OpParams], tuple[int, ...]] = {
    ops.JitterParams: (1, 4, 4),
    ops.GrayscaleParams: (1,),
    ops.BlurParams: (1,),
    ops.WarpParams: (1, 8, 14),
    ops.LevelParams: (1, 1),
    geometry.TurnParams: (1,),
    geometry.RotateParams: (1, 2),
    geometry.EraseParams: (1, 4),
}
Kinds = tuple[type[ops.OpParams], ...]  # of the ops of a policy, in their order
COMPILE_FROM = 3  # batches of the same shapes: compiling takes longer than rendering the first ones
MAX_SHAPES = 6  # that are compiled (torch stops at 8 of a function): a progressive run has 3, photos of many sizes more


def render_cuda(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    params: Sequence[ViewParams],
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "v n 3 s s"]:
    """V views of each image, float32 in [0, 1], within 1/255 of those of `render_reference`.

    Compiled on CUDA from a shape's third batch on. AutoAugment, RandAugment and ChannelJitter have no batched form: the
    reference renders their policies.
    """
    kinds: Kinds = tuple(type(op) for op in params[0].ops)
    if not OPS.keys() >= set(kinds):
        return torch.stack([render_reference(images, view, size, interpolation) for view in params])
    if not isinstance(images, Tensor):
        return torch.cat([_render_unequal(images, view, kinds, size, interpolation) for view in params])
    return _rendered(images, params, kinds, size, interpolation)


def pack_params(params: Sequence[ViewParams]) -> Float[np.ndarray, "v n k"]:
    """All parameters as one array, one row for each view of each image: box, flip, then the fields of each op.

    float64: the weights of a warp can be large and nearly cancel, so that float32 would move pixels.
    """
    return np.stack([_rows(view) for view in params])


def _rows(view: ViewParams) -> Float[np.ndarray, "n k"]:
    n = len(view.box)
    parts = [view.box, view.flip]
    for op in view.ops:
        parts += vars(op).values()
    return np.concatenate([part.reshape(n, -1) for part in parts], axis=1, dtype=np.float64)


def render_packed(
    images: UInt8[Tensor, "n 3 height width"],
    numbers: Float[Tensor, "v n k"],
    kinds: Kinds,
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "v n 3 s s"]:
    """The views whose parameters `pack_params` has packed. No shape depends on the values of the tensors."""
    views, n, _ = numbers.shape
    box, flip, *of_ops = numbers.split([4, 1, *(sum(WIDTHS[kind]) for kind in kinds)], dim=2)
    with torch.autocast(images.device.type, enabled=False):
        x = _crop_resize_flip(images, box, flip, size, interpolation)
        for kind, part in zip(kinds, of_ops, strict=True):
            x = OPS[kind](x, *part.flatten(0, 1).split(WIDTHS[kind], dim=1))
        return x.view(views, n, 3, size, size)


def _crop_resize_flip(
    images: UInt8[Tensor, "n 3 height width"],
    box: Float[Tensor, "v n 4"],
    flip: Float[Tensor, "v n 1"],
    size: int,
    interpolation: Interpolation,
) -> Float[Tensor, "m 3 s s"]:
    """Two matrix products for each image, rows first: the image itself is read once for all its views."""
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
    """`filter_weights` that sum to 1."""
    weights = filter_weights(start, length, side, size, interpolation)
    return weights / weights.sum(-1, keepdim=True)


def _jitter(
    x: Float[Tensor, "m 3 s s"],
    jitter: Float[Tensor, "m 1"],
    factors: Float[Tensor, "m 4"],
    order: Float[Tensor, "m 4"],
) -> Float[Tensor, "m 3 s s"]:
    """Brightness, contrast and saturation blend x with something: black, its mean gray level, its own gray level."""
    for turn in range(4):
        which = order[:, turn : turn + 1].long()
        factor = torch.where(jitter > 0, factors.gather(1, which).float(), 1.0)[..., None, None]
        which = torch.where(jitter > 0, which, -1)[..., None, None]
        gray = luma(x).unsqueeze(1)
        other = torch.where(which == SATURATION, gray, gray.mean((2, 3), keepdim=True) * (which == CONTRAST))
        share = torch.where(which == HUE, 1.0, factor)
        shifted = adjust_hue(x, torch.where(which == HUE, factor, 0.0))
        x = torch.where(which == HUE, shifted, (x * share + other * (1 - share)).clamp(0, 1))
    return x


def _gray(x: Float[Tensor, "m 3 s s"], gray: Float[Tensor, "m 1"]) -> Float[Tensor, "m 3 s s"]:
    return torch.where(gray[..., None, None] > 0, luma(x).unsqueeze(1), x)


def _blur(x: Float[Tensor, "m 3 s s"], sigma: Float[Tensor, "m 1"]) -> Float[Tensor, "m 3 s s"]:
    """As `gaussian_blur`; without blur the middle tap has all the weight."""
    radius = blur_kernel(x.shape[-1]) // 2
    tap = torch.arange(-radius, radius + 1, device=x.device)
    taps = torch.where(sigma > 0, torch.exp(-0.5 * (tap / sigma.clamp(min=1e-3)) ** 2), (tap == 0).to(sigma))
    return filtered(x, (taps / taps.sum(1, keepdim=True)).float())


def _warp(
    x: Float[Tensor, "m 3 s s"], warp: Float[Tensor, "m 1"], knots: Float[Tensor, "m 8"], weights: Float[Tensor, "m 14"]
) -> Float[Tensor, "m 3 s s"]:
    warped = sparse_image_warp(x, knots.view(-1, 4, 2), weights.view(-1, 7, 2))
    return torch.where(warp[..., None, None] > 0, warped, x)


def _levels(
    x: Float[Tensor, "m c s s"], op: Float[Tensor, "m 1"], magnitude: Float[Tensor, "m 1"]
) -> Float[Tensor, "m c s s"]:
    """Change each view's levels by the table of its op; equalize has another table for each channel."""
    m, c, _, _ = x.shape
    op, magnitude = op[..., None, None], magnitude[..., None, None]
    levels = (x * 255).round().long().flatten(2)
    every = torch.arange(256, dtype=torch.uint8, device=x.device).view(1, 1, 16, 16).expand(m, c, 16, 16)
    table = torch.where(op == SOLARIZE, solarize(every, magnitude), every)
    table = torch.where(op == POSTERIZE, posterize(every, magnitude), table).flatten(2)
    table = torch.where(op[..., 0] == EQUALIZE, _equalizing(levels), table.long())
    changed = table.gather(2, levels).view_as(x).to(x) / 255
    return torch.where(op > 0, changed, x)


def _equalizing(levels: Int64[Tensor, "m c pixels"]) -> Int64[Tensor, "m c 256"]:
    """The tables of PIL's and torchvision's equalize; a channel of too few pixels or levels for one stays as it is."""
    every = torch.arange(256, device=levels.device)
    count = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=levels.device)
    count = count.scatter_add(2, levels, torch.ones_like(levels))
    brightest = count.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = count.cumsum(2) - count
    table = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, table.clamp(max=255), every)


def _turn(x: Float[Tensor, "m c s s"], turn: Float[Tensor, "m 1"]) -> Float[Tensor, "m c s s"]:
    out = x
    for which in range(1, geometry.UPSIDE_DOWN + 1):
        out = torch.where(turn[..., None, None] == which, geometry.turned(x, which), out)
    return out


def _rotate(
    x: Float[Tensor, "m c s s"], rotate: Float[Tensor, "m 1"], direction: Float[Tensor, "m 2"]
) -> Float[Tensor, "m c s s"]:
    return torch.where(rotate[..., None, None] > 0, geometry.rotated(x, direction), x)


def _erase(
    x: Float[Tensor, "m c s s"], erase: Float[Tensor, "m 1"], box: Float[Tensor, "m 4"]
) -> Float[Tensor, "m c s s"]:
    return geometry.erased(x, erase[:, 0] > 0, box)


OPS: dict[type[ops.OpParams], Callable[..., Tensor]] = {
    ops.JitterParams: _jitter,
    ops.GrayscaleParams: _gray,
    ops.BlurParams: _blur,
    ops.WarpParams: _warp,
    ops.LevelParams: _levels,
    geometry.TurnParams: _turn,
    geometry.RotateParams: _rotate,
    geometry.EraseParams: _erase,
}


def _render_unequal(
    images: Sequence[Tensor], params: ViewParams, kinds: Kinds, size: int, interpolation: Interpolation
) -> Float[Tensor, "1 n 3 s s"]:
    """One view of images whose sizes differ: their boxes in a batch, with sides rounded up so that few shapes occur."""
    batch, box = cut_out(images, params.box)
    batch = F.pad(batch, (0, -batch.shape[3] % size, 0, -batch.shape[2] % size))
    return _rendered(batch, [ViewParams(box, params.flip, params.ops)], kinds, size, interpolation)


def _rendered(images: Tensor, params: Sequence[ViewParams], *rest: Any) -> Float[Tensor, "v n 3 s s"]:
    """The views by `render_packed`, compiled where that pays: on CUDA, for shapes that occur often."""
    numbers = to_device(pack_params(params), images.device)
    compiled = compiles(images.device) and _is_frequent((images.shape, numbers.shape, *rest))
    render = _compiled() if compiled else render_packed
    return render(images, numbers, *rest)


def _is_frequent(shapes: Hashable) -> bool:
    """Count a batch of these shapes, ops and view size, and say whether such batches are worth compiling for.

    These are the first MAX_SHAPES kinds of batches that have occurred COMPILE_FROM times.
    """
    _batches_of[shapes] += 1
    if _batches_of[shapes] >= COMPILE_FROM and len(_frequent) < MAX_SHAPES:
        _frequent.add(shapes)
    return shapes in _frequent


_batches_of: Counter[Hashable] = Counter()
_frequent: set[Hashable] = set()


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(render_packed, dynamic=False)
