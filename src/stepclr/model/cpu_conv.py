"""Convolutions that oneDNN does slowly in bfloat16 on the CPU, done another way: the same sums, in less time.

Small maps: where a map has few positions (2x2 in the last stage of a ResNet-18 at 32 pixels), oneDNN leaves most of the
processor idle, and with strides it takes long for the gradient of the weight. Written out as patches, one row of (tap,
channel) for each position of the output, the sums are one product of matrices. Where that is faster depends on the
processor: `INTEL` and `AMD` follow what `benchmarks/small_conv.py` printed on one of each.

Depthwise, as in EfficientNet and MobileNet: the gradient of x with strides, and that of the weight with kernels above
3x3, take a multiple of their time in float32 (`benchmarks/depthwise_conv.py`), so they are computed in float32.

Only bfloat16 on the CPU uses this; scores are computed by the plain convolution in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from stepclr.device import is_amd


@dataclass(frozen=True)
class Limits:
    """Up to how many positions of a map patches are the faster way to each of the three sums of a convolution.

    value: positions of the output, in convolutions with at least `wide` output channels.
    to_x: for the gradient of x: positions of x, in convolutions with stride 1.
    to_weight, to_weight_strided: for the gradient of the weight: positions of the output, with stride 1 and above.
    """

    value: int
    wide: int
    to_x: int
    to_weight: int
    to_weight_strided: int

    def takes_value(self, out: int, positions: int) -> bool:
        """Whether patches compute the value, in a convolution where they compute the gradient of the weight."""
        return out >= self.wide and positions <= self.value

    def takes_x(self, stride: int, positions_of_x: int) -> bool:
        """Whether patches compute the gradient of x."""
        return stride == 1 and positions_of_x <= self.to_x

    def takes_weight(self, stride: int, positions: int) -> bool:
        """Whether patches compute the gradient of the weight."""
        return positions <= (self.to_weight if stride == 1 else self.to_weight_strided)


INTEL = Limits(value=16, wide=1, to_x=16, to_weight=36, to_weight_strided=36)  # with AMX
AMD = Limits(value=4, wide=512, to_x=0, to_weight=9, to_weight_strided=36)


def limits() -> Limits:
    """The limits for this processor."""
    return AMD if is_amd() else INTEL


class StandIn(nn.Conv2d):
    """A square convolution that is computed another way in bfloat16 on the CPU, where that `pays`.

    `plain`: the convolution that it stands for, with which it shares parameters, hooks and everything else.
    """

    way: ClassVar[type[torch.autograd.Function]]  # of (x, weight, stride, padding)

    def __init__(self, plain: nn.Conv2d) -> None:
        object.__setattr__(self, "__dict__", plain.__dict__)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o p q"]:
        half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if x.device.type != "cpu" or not half or not self.pays(x):
            return super().forward(x)
        y: Tensor = self.way.apply(x.bfloat16(), self.weight.bfloat16(), self.stride[0], int(self.padding[0]))
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def pays(self, _: Tensor) -> bool:
        return True


class _ByPatches(torch.autograd.Function):
    """The convolution of x with a weight, and its two gradients: by patches, or by oneDNN where that is faster."""

    @staticmethod
    def forward(
        ctx: Any, x: BFloat16[Tensor, "n c h w"], weight: BFloat16[Tensor, "o c k k"], stride: int, pad: int
    ) -> BFloat16[Tensor, "n o p q"]:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad = stride, pad
        if limits().takes_value(len(weight), positions(x, weight.shape[2], stride, pad)):
            return value_by_patches(x, weight, stride, pad)
        return F.conv2d(x, weight, None, stride, pad)

    @staticmethod
    def backward(ctx: Any, g: BFloat16[Tensor, "n o p q"]) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            if limits().takes_x(ctx.stride, x.shape[2] * x.shape[3]):
                to_x = to_x_by_patches(g, weight, ctx.pad)
            else:
                to_x = gradient((g, x, weight), ctx.stride, ctx.pad, of=0)
        if ctx.needs_input_grad[1]:
            to_weight = to_weight_by_patches(g, x, weight.shape[2], ctx.stride, ctx.pad)
        return to_x, to_weight, None, None


class SmallConv2d(StandIn):
    """A convolution without groups, computed by patches where its output is small."""

    way = _ByPatches

    def pays(self, x: Tensor) -> bool:
        stride = self.stride[0]
        return limits().takes_weight(stride, positions(x, self.kernel_size[0], stride, int(self.padding[0])))


def positions(x: Tensor, side: int, stride: int, pad: int) -> int:
    """The number of positions of the output."""
    down, across = ((length + 2 * pad - side) // stride + 1 for length in x.shape[2:])
    return down * across


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

    way = _Depthwise


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


@contextmanager
def cpu_convolutions(network: nn.Module) -> Iterator[None]:
    """A context of `use_cpu_convolutions` for a network on the CPU, whose own convolutions are put back at its end."""
    swapped = use_cpu_convolutions(network)
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


def use_cpu_convolutions(network: nn.Module) -> list[tuple[nn.Module, str, nn.Conv2d]]:
    """Put the classes above in the places of the convolutions that they stand for, with the same weights and names.

    Returns (parent, name, what was there) of each.
    """
    swapped = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            # Of subclasses only timm's: what others do besides is not known here.
            if not isinstance(child, nn.Conv2d) or type(child) not in (nn.Conv2d, Conv2dSame):
                continue
            if not child.weight.is_cpu:
                continue
            if kind := _kind(child):
                swapped.append((parent, name, child))
                setattr(parent, name, kind(child))
    return swapped


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
