"""Convolutions that oneDNN does slowly in bfloat16 on the CPU, done another way: the same sums, in less time.

Small maps: where a map has few positions, oneDNN leaves most of the processor idle, and with strides it takes long for
the gradient of the weight. A map smaller than the kernel (2x2 in the last stage of a ResNet-18 at 32 pixels) goes
through a linear layer from all of x to all of y: most taps fall outside of such a map, and are not multiplied. Larger
ones are written out as patches, one row of (tap, channel) for each position of the output, so that the sums are one
product of matrices. Where that is faster depends on the processor: `INTEL`, `ZEN4` and `ZEN5` follow what
`benchmarks/small_conv.py` printed on one of each.

Depthwise, as in EfficientNet and MobileNet: the gradient of x with strides, and that of the weight with kernels above
3x3, take a multiple of their time in float32 (`benchmarks/depthwise_conv.py`), so they are computed in float32.

Only bfloat16 on the CPU uses this; scores are computed by the plain convolution in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from stepclr.device import amd_family
from stepclr.model.stand_ins import SharesAll, put_in, standing_in


@dataclass(frozen=True)
class Limits:
    """Up to how many positions of a map patches are the faster way to each of the three sums of a convolution.

    value: positions of the output.
    to_x: for the gradient of x: positions of x, in convolutions with stride 1.
    to_weight, to_weight_strided: for the gradient of the weight: positions of the output, with stride 1 and above.
    wide: the value needs at least so many output channels, and the gradient of x so many channels of x.
    """

    value: int
    to_x: int
    to_weight: int
    to_weight_strided: int
    wide: int

    def takes_value(self, out: int, positions: int) -> bool:
        """Whether patches compute the value, in a convolution where they compute the gradient of the weight."""
        return out >= self.wide and positions <= self.value

    def takes_x(self, stride: int, channels: int, positions_of_x: int) -> bool:
        """Whether patches compute the gradient of x, in a convolution where they compute that of the weight."""
        return stride == 1 and channels >= self.wide and positions_of_x <= self.to_x

    def takes_weight(self, stride: int, positions: int) -> bool:
        """Whether patches compute the gradient of the weight."""
        return positions <= (self.to_weight if stride == 1 else self.to_weight_strided)


INTEL = Limits(value=16, to_x=16, to_weight=36, to_weight_strided=36, wide=1)  # with AMX
ZEN4 = Limits(value=4, to_x=0, to_weight=9, to_weight_strided=36, wide=512)
ZEN5 = Limits(value=9, to_x=9, to_weight=16, to_weight_strided=36, wide=384)


def limits() -> Limits:
    """The limits for this processor."""
    family = amd_family()
    if not family:
        return INTEL
    return ZEN5 if family >= 26 else ZEN4


class StandIn(SharesAll, nn.Conv2d):
    """A square convolution that is computed another `way` in bfloat16 on the CPU, where there is a faster one."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o p q"]:
        half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        way = self.way(x) if x.device.type == "cpu" and half else None
        if way is None:
            return super().forward(x)
        y: Tensor = way.apply(x.bfloat16(), self.weight.bfloat16(), self.stride[0], int(self.padding[0]))
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def way(self, x: Tensor) -> type[torch.autograd.Function] | None:
        """What computes it from (x, weight, stride, padding); None: the plain way."""
        raise NotImplementedError


class _AsLinear(torch.autograd.Function):
    """The convolution of a whole map at once: a linear layer from all of x to all of y."""

    @staticmethod
    def forward(
        ctx: Any, x: BFloat16[Tensor, "n c h w"], weight: BFloat16[Tensor, "o c k k"], stride: int, pad: int
    ) -> BFloat16[Tensor, "n o p q"]:
        linear = as_linear(weight, x.shape[2:], stride, pad)
        ctx.save_for_backward(x, linear)
        ctx.side, ctx.stride, ctx.pad = weight.shape[2], stride, pad
        return as_maps(as_rows(x) @ linear.T, sides_after(x.shape[2:], ctx.side, stride, pad))

    @staticmethod
    def backward(ctx: Any, g: BFloat16[Tensor, "n o p q"]) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, linear = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = as_maps(as_rows(g) @ linear, x.shape[2:])
        if ctx.needs_input_grad[1]:
            sums = to_weight_by_patches if few(g) else to_weight_as_linear
            to_weight = sums(g, x, ctx.side, ctx.stride, ctx.pad)
        return to_x, to_weight, None, None


class _ByPatches(torch.autograd.Function):
    """The convolution of x with a weight, and its two gradients: by patches, or by oneDNN where that is faster."""

    @staticmethod
    def forward(
        ctx: Any, x: BFloat16[Tensor, "n c h w"], weight: BFloat16[Tensor, "o c k k"], stride: int, pad: int
    ) -> BFloat16[Tensor, "n o p q"]:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad = stride, pad
        if limits().takes_value(len(weight), prod(sides_after(x.shape[2:], weight.shape[2], stride, pad))):
            return value_by_patches(x, weight, stride, pad)
        return F.conv2d(x, weight, None, stride, pad)

    @staticmethod
    def backward(ctx: Any, g: BFloat16[Tensor, "n o p q"]) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            if limits().takes_x(ctx.stride, x.shape[1], prod(x.shape[2:])):
                to_x = to_x_by_patches(g, weight, ctx.pad)
            else:
                to_x = gradient((g, x, weight), ctx.stride, ctx.pad, of=0)
        if ctx.needs_input_grad[1]:
            to_weight = to_weight_by_patches(g, x, weight.shape[2], ctx.stride, ctx.pad)
        return to_x, to_weight, None, None


class SmallConv2d(StandIn):
    """A convolution without groups, computed another way where its maps are small."""

    def way(self, x: Tensor) -> type[torch.autograd.Function] | None:
        side, stride = self.kernel_size[0], self.stride[0]
        after = sides_after(x.shape[2:], side, stride, int(self.padding[0]))
        if min(after) < 1:
            return None  # torch says what is wrong
        if prod(x.shape[2:]) < side * side:
            return _AsLinear
        return _ByPatches if limits().takes_weight(stride, prod(after)) else None


def sides_after(before: Sequence[int], side: int, stride: int, pad: int) -> tuple[int, int]:
    """Height and width of the output, given those of x and the side of the kernel."""
    height, width = ((length + 2 * pad - side) // stride + 1 for length in before)
    return height, width


def as_rows(maps: Tensor) -> BFloat16[Tensor, "n hwc"]:
    """A row for each map, position by position."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def as_maps(rows: Tensor, sides: Sequence[int]) -> BFloat16[Tensor, "n c h w"]:
    """The maps of these sides that `as_rows` made rows of."""
    return rows.unflatten(1, (*sides, -1)).permute(0, 3, 1, 2)


def meetings(before: Sequence[int], side: int, stride: int, pad: int) -> Iterator[tuple[int, int, int, int]]:
    """Which tap lies between which positions: (position of y, position of x, row and column of the tap)."""
    after = sides_after(before, side, stride, pad)
    for (at_y, (p, q)), (at_x, (h, w)) in product(enumerate(np.ndindex(*after)), enumerate(np.ndindex(*before))):
        row, column = h + pad - p * stride, w + pad - q * stride
        if 0 <= row < side and 0 <= column < side:
            yield at_y, at_x, row, column


def as_linear(weight: Tensor, before: Sequence[int], stride: int, pad: int) -> BFloat16[Tensor, "pqo hwc"]:
    """The weight of the linear layer from all of x, whose sides are `before`, to all of y: it repeats the taps."""
    out, channels, side, _ = weight.shape
    positions_of_y = prod(sides_after(before, side, stride, pad))
    linear = weight.new_zeros(positions_of_y, out, prod(before), channels)
    for at_y, at_x, row, column in meetings(before, side, stride, pad):
        linear[at_y, :, at_x] = weight[:, :, row, column]
    return linear.flatten(2).flatten(0, 1)


def few(g: Tensor) -> bool:
    """Whether there are so few images that adding up the repeated taps, which takes as long for many, does not pay."""
    return 4 * len(g) < g.shape[1]


def to_weight_as_linear(g: Tensor, x: Tensor, side: int, stride: int, pad: int) -> BFloat16[Tensor, "o c k k"]:
    """The gradient of the weight: for each tap, the sum of what reaches the places where `as_linear` repeats it."""
    out, channels, before = g.shape[1], x.shape[1], x.shape[2:]
    to_linear = (as_rows(g).T @ as_rows(x)).view(-1, out, prod(before), channels)
    taps = torch.zeros(out, side, side, channels)  # summed in float32
    for at_y, at_x, row, column in meetings(before, side, stride, pad):
        taps[:, row, column] += to_linear[at_y, :, at_x]
    return taps.permute(0, 3, 1, 2).bfloat16()


def patches(x: Tensor, side: int, stride: int, pad: int) -> BFloat16[Tensor, "n p q kkc"]:
    """What the kernel sees at each position of the output, written out tap by tap."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    return padded.unfold(1, side, stride).unfold(2, side, stride).permute(0, 1, 2, 4, 5, 3).flatten(3)


def value_by_patches(x: Tensor, weight: Tensor, stride: int, pad: int) -> BFloat16[Tensor, "n o p q"]:
    """The convolution: patches times taps."""
    taps = weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patches(x, weight.shape[2], stride, pad), taps).permute(0, 3, 1, 2)


def to_x_by_patches(g: Tensor, weight: Tensor, pad: int) -> BFloat16[Tensor, "n c h w"]:
    """The gradient of x, with stride 1: the convolution of g with the weight rotated by 180°."""
    out, channels, side, _ = weight.shape
    # (o, tap, c) -> (c, tap turned, o), first by a plain transposition, which is the quick part
    turned = weight.permute(0, 2, 3, 1).reshape(out, -1).T.contiguous().view(side * side, channels, out)
    turned = turned.flip(0).transpose(0, 1).reshape(channels, -1)
    return F.linear(patches(g, side, 1, side - 1 - pad), turned).permute(0, 3, 1, 2)


def to_weight_by_patches(g: Tensor, x: Tensor, side: int, stride: int, pad: int) -> BFloat16[Tensor, "o c k k"]:
    """The gradient of the weight: what came back at each position times what the kernel saw there."""
    out = g.permute(0, 2, 3, 1).flatten(0, 2)
    taps = out.T @ patches(x, side, stride, pad).flatten(0, 2)
    return taps.view(out.shape[1], side, side, -1).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """The convolution of x with a filter per channel, and its two gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: BFloat16[Tensor, "n c h w"], weight: BFloat16[Tensor, "c 1 k k"], stride: int, pad: int
    ) -> BFloat16[Tensor, "n c p q"]:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad = stride, pad
        return F.conv2d(x, weight, None, stride, pad, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, g: BFloat16[Tensor, "n c p q"]) -> tuple[Tensor | None, Tensor | None, None, None]:
        given = g, *ctx.saved_tensors
        in_full = [tensor.float() for tensor in given]
        strided, wide = ctx.stride > 1, given[2].shape[2] > 3
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = gradient(in_full if strided else given, ctx.stride, ctx.pad, of=0).bfloat16()
        if ctx.needs_input_grad[1]:
            to_weight = gradient(in_full if wide else given, ctx.stride, ctx.pad, of=1).bfloat16()
        return to_x, to_weight, None, None


class DepthwiseConv2d(StandIn):
    """A convolution with one filter per channel, whose slow gradients are computed in float32."""

    def way(self, _: Tensor) -> type[torch.autograd.Function]:
        return _Depthwise


class SameDepthwiseConv2d(DepthwiseConv2d):
    """The same for timm's `Conv2dSame`, which pads as TensorFlow does and has no padding of its own."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c p q"]:
        return super().forward(pad_same(x, list(self.kernel_size), list(self.stride)))


def gradient(given: Sequence[Tensor], stride: int, pad: int, of: int) -> Float[Tensor, "..."]:
    """The gradient of x (`of` = 0) or of the weight (`of` = 1), given (g, x, weight); by oneDNN, in their type."""
    g, x, weight = given
    groups = x.shape[1] // weight.shape[1]
    wanted = [of == 0, of == 1, False]
    gradients: tuple[Any, ...] = torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride, stride], [pad, pad], [1, 1], False, [0, 0], groups, wanted
    )
    return gradients[of]


def cpu_convolutions(network: nn.Module) -> AbstractContextManager[None]:
    """A context of `use_cpu_convolutions` for a network on the CPU, whose own convolutions are put back at its end."""
    return standing_in(network, _stand_in)


def use_cpu_convolutions(network: nn.Module) -> None:
    """Put the classes above in the places of the convolutions that they stand for, with the same weights and names."""
    put_in(network, _stand_in)


def _stand_in(module: nn.Module) -> StandIn | None:
    # Of subclasses only timm's: what others do besides is not known here.
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, Conv2dSame) or not module.weight.is_cpu:
        return None
    kind = _kind(module)
    return kind(module) if kind else None


def _kind(convolution: nn.Conv2d) -> type[StandIn] | None:
    """The class that stands for a convolution, if one does."""
    side, across = convolution.kernel_size
    stride, padding = convolution.stride[0], convolution.padding
    square = side == across > 1 and stride == convolution.stride[1] and convolution.dilation == (1, 1)
    if not square or convolution.padding_mode != "zeros" or isinstance(padding, str) or padding[0] != padding[1]:
        return None
    same = isinstance(convolution, Conv2dSame)
    if convolution.groups == 1:
        return None if same else SmallConv2d
    depthwise = convolution.groups == convolution.in_channels == convolution.out_channels
    if not depthwise or (stride == 1 and side == 3):
        return None
    return SameDepthwiseConv2d if same else DepthwiseConv2d
