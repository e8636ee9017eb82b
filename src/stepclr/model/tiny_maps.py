"""Convolutions over tiny feature maps, as matrix products.

Where a map has only a few positions (2x2 in the last stage of a ResNet-18 at 32 pixels), oneDNN's bfloat16 convolution
leaves nearly all of the processor idle. Written out as a dense matrix from (position, channel) to (position, channel)
the same sums take a small part of the time. Over somewhat larger maps only the weights' gradient is slow, and taken tap
by tap. `benchmarks/tiny_maps.py` prints both. Only bfloat16 training on the CPU goes this way; scores are computed by
the plain convolution in float32.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FROM, TO = 16, 4  # positions of the map that comes in and goes out, at most: beyond, the matrix is mostly zeros
LEAST = 128  # pictures in a batch: below, writing the matrix out takes longer than it saves
SMALL = 36  # positions that go out: up to here the weights' gradient is faster tap by tap


class TinyMapConv2d(nn.Conv2d):
    """`nn.Conv2d`, but for bfloat16 training on the CPU where the maps are tiny."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o p q"]:
        if not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return super().forward(x)
        n, _, height, width = x.shape
        side, stride, pad = self.kernel_size[0], self.stride[0], int(self.padding[0])
        down, across = ((length + 2 * pad - side) // stride + 1 for length in (height, width))
        if n >= LEAST and height * width <= FROM and down * across <= TO:
            y = self._as_one_matrix(x, down, across)
        elif down * across <= SMALL:
            y = _TapByTap.apply(x.bfloat16(), self.weight.bfloat16(), stride, pad)
        else:
            return super().forward(x)
        return y if self.bias is None else y + self.bias[:, None, None]

    def _as_one_matrix(self, x: Float[Tensor, "n c h w"], down: int, across: int) -> Float[Tensor, "n o p q"]:
        n, channels, height, width = x.shape
        # [taps + 1, O, C]; the last tap is the zero between positions that do not touch
        taps = F.pad(self.weight.permute(2, 3, 0, 1).flatten(0, 1), (0, 0, 0, 0, 0, 1))
        which = _taps(height, width, down, across, self.kernel_size[0], self.stride[0], int(self.padding[0]))
        matrix = taps.index_select(0, which).view(down * across, height * width, self.out_channels, channels)
        matrix = matrix.permute(0, 2, 1, 3).reshape(down * across * self.out_channels, height * width * channels)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(n, height * width * channels), matrix)
        return y.view(n, down, across, self.out_channels).permute(0, 3, 1, 2)


class _TapByTap(torch.autograd.Function):
    """The plain convolution, but for the gradient of its weights: a matrix product for each tap of the kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "n c h w"], weight: Float[Tensor, "o c k k"], stride: int, pad: int
    ) -> Float[Tensor, "n o p q"]:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad = stride, pad
        return F.conv2d(x, weight, None, stride, pad)

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "n o p q"]) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        stride, pad = ctx.stride, ctx.pad
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            pads, strides = [pad, pad], [stride, stride]
            to_x, _, _ = torch.ops.aten.convolution_backward(
                g, x, weight, None, strides, pads, [1, 1], False, [0, 0], 1, [True, False, False]
            )
        if ctx.needs_input_grad[1]:
            out, channels, side, _ = weight.shape
            down, across = g.shape[2:]
            pushed = g.permute(0, 2, 3, 1).reshape(-1, out).T
            padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
            taps = [
                pushed
                @ padded[:, i : i + stride * down : stride, j : j + stride * across : stride].reshape(-1, channels)
                for i in range(side)
                for j in range(side)
            ]
            to_weight = torch.stack(taps, 2).view_as(weight)
        return to_x, to_weight, None, None


@cache
def _taps(height: int, width: int, down: int, across: int, side: int, stride: int, pad: int) -> Tensor:
    """For each pair of a position that goes out and one that comes in, the kernel's tap between them."""
    numbers = []
    for p in range(down * across):
        for q in range(height * width):
            row = q // width - p // across * stride + pad
            column = q % width - p % across * stride + pad
            touches = 0 <= row < side and 0 <= column < side
            numbers.append(row * side + column if touches else side * side)
    return torch.tensor(numbers)


def use_tiny_maps(network: nn.Module) -> None:
    """Let every square, plain convolution of `network` take the short way. Its weights and their names stay."""
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.kernel_size[0] == module.kernel_size[1] > 1
            and module.stride[0] == module.stride[1]
            and not isinstance(module.padding, str)
            and module.padding[0] == module.padding[1]
            and module.padding_mode == "zeros"
        ):
            module.__class__ = TinyMapConv2d
