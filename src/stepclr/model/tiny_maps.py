"""Convolutions over tiny feature maps, as one matrix product.

Where a map has only a few positions (2x2 in the last stage of a ResNet-18 at 32 pixels), oneDNN's bfloat16 convolution
leaves nearly all of the processor idle. Written out as a dense matrix from (position, channel) to (position, channel)
the same sums take a small part of the time (`benchmarks/tiny_maps.py` prints both). Only bfloat16 training on the CPU
goes this way; features and scores are computed by the plain convolution.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FROM, TO = 16, 4  # positions of the map that comes in and goes out, at most: beyond, the matrix is mostly zeros

LEAST = 128  # pictures in a batch: below, writing the matrix out takes longer than it saves


class TinyMapConv2d(nn.Conv2d):
    """`nn.Conv2d`, but for bfloat16 training on the CPU where the maps are tiny."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o p q"]:
        if not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return super().forward(x)
        n, channels, height, width = x.shape
        if n < LEAST:
            return super().forward(x)
        side, stride, pad = self.kernel_size[0], self.stride[0], int(self.padding[0])
        down, across = ((length + 2 * pad - side) // stride + 1 for length in (height, width))
        if height * width > FROM or down * across > TO:
            return super().forward(x)
        # [taps + 1, O, C]; the last tap is the zero between positions that do not touch
        taps = F.pad(self.weight.permute(2, 3, 0, 1).flatten(0, 1), (0, 0, 0, 0, 0, 1))
        which = _taps(height, width, down, across, side, stride, pad)
        matrix = taps.index_select(0, which).view(down * across, height * width, self.out_channels, channels)
        matrix = matrix.permute(0, 2, 1, 3).reshape(down * across * self.out_channels, height * width * channels)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(n, height * width * channels), matrix)
        y = y.view(n, down, across, self.out_channels).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias[:, None, None]


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
