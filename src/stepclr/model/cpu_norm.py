"""BatchNorm in training in bfloat16 on the CPU, in one with ReLU and the addition of a shortcut: less memory traffic.

y = relu(BatchNorm(x) + shortcut) is three operations in torch, each of which reads and writes all maps and rounds to
bfloat16; `numba/norm.py` does them together and rounds once. Statistics are summed in float64 over pieces whose size
depends on the maps alone, so that the number of threads does not change a result.

Everything else is computed as before: other precisions, eval mode, other devices, maps that are not channels last.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stepclr.machine_code import Kernel, machine_code, numba_is_missing
from stepclr.model.stand_ins import SharesAll, standing_in
from stepclr.threads import share_out

TYPES = (torch.bfloat16,)
LEAST = 2**19  # numbers in maps: with fewer, the calls from Python take longer than what they save
PIECE = 2**18  # numbers of maps that a thread goes through at a time: they stay in its cache
Rows = NDArray[Any]  # [positions, C]; bfloat16 as uint16


def norm_relu(x: Float[Tensor, "n c h w"], norm: nn.Module, shortcut: Tensor | None = None) -> Tensor:
    """relu(norm(x) + shortcut), or relu(norm(x))."""
    if isinstance(norm, nn.BatchNorm2d) and takes(norm, x) and (shortcut is None or alike(shortcut, x)):
        return fused(x, norm, shortcut, 0.0)
    y: Tensor = norm(x)
    if shortcut is not None:
        y += shortcut
    return F.relu(y, inplace=True)


class CpuBatchNorm2d(SharesAll, nn.BatchNorm2d):
    """A BatchNorm that is computed by the kernels where they can."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return fused(x, self, None, -np.inf) if takes(self, x) else super().forward(x)


class CpuBasicBlock(SharesAll, BasicBlock):
    """A block of ResNet-18 or 34 with norms, addition and ReLUs in one."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = norm_relu(self.conv1(x), self.bn1)
        return norm_relu(self.conv2(x), self.bn2, shortcut)


class CpuBottleneck(SharesAll, Bottleneck):
    """The same of a block of ResNet-50 and deeper."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = norm_relu(self.conv1(x), self.bn1)
        x = norm_relu(self.conv2(x), self.bn2)
        return norm_relu(self.conv3(x), self.bn3, shortcut)


class CpuResNet(SharesAll, ResNet):
    """The same of a ResNet's stem."""

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        if self.grad_checkpointing:
            return super().forward_features(x)
        x = norm_relu(self.conv1(x), self.bn1)
        for layer in (self.maxpool, self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)  # type: ignore[operator]
        return x


STAND_INS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.BatchNorm2d: CpuBatchNorm2d,
    BasicBlock: CpuBasicBlock,
    Bottleneck: CpuBottleneck,
    ResNet: CpuResNet,
}


def cpu_norms(network: nn.Module) -> AbstractContextManager[None]:
    """A context in which the classes above stand in the places of a network's own modules on the CPU."""
    return nullcontext() if numba_is_missing() else standing_in(network, _stand_in)


def _stand_in(module: nn.Module) -> nn.Module | None:
    # Of subclasses it is not known what they do besides.
    kind = STAND_INS.get(type(module))
    return kind(module) if kind and _is_plain(module) else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is on the CPU and does nothing else than the class that would stand for it."""
    if not all(parameter.is_cpu for parameter in module.parameters()):
        return False
    if isinstance(module, nn.BatchNorm2d):
        return True
    if isinstance(module, ResNet):
        return _of_plain_layers([module.bn1, module.act1])
    return _of_plain_layers([layer for name, layer in module.named_children() if name != "downsample"])


def _of_plain_layers(layers: Sequence[nn.Module]) -> bool:
    """Whether there are only convolutions, norms and ReLUs, and nobody looks at a norm or a ReLU alone."""
    others = [layer for layer in layers if not isinstance(layer, nn.Conv2d)]
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    seen = any(getattr(layer, name) for layer in others for name in hooks)
    return not seen and all(type(layer) in (nn.BatchNorm2d, nn.ReLU, nn.Identity) for layer in others)


def takes(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether the kernels compute this norm of these maps."""
    usual = norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
    maps = x.device.type == "cpu" and x.dtype in TYPES and x.ndim == 4 and x.numel() >= LEAST
    return usual and maps and x.is_contiguous(memory_format=torch.channels_last)


def alike(shortcut: Tensor, x: Tensor) -> bool:
    """Whether two maps lie in memory in the same way."""
    return (shortcut.shape, shortcut.dtype, shortcut.stride()) == (x.shape, x.dtype, x.stride())


class FusedNorm(torch.autograd.Function):
    """max(norm(x) + shortcut, floor) in training, and its gradients.

    floor: 0 for ReLU; -inf for none, without a shortcut. With the mean m and the variance v of each channel, y is
    scale x + shift, where scale = weight / sqrt(v + eps). Of the gradient dy that passes ReLU at N positions comes

        dx = scale (dy - sum dy / N - (x - m) sum dy (x - m) / (v + eps) / N)
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, floor: float
    ) -> Tensor:
        _, normalize, _, _ = kernels()
        rows, y = rows_of(x), torch.empty_like(x)
        out, other = rows_of(y), None if shortcut is None else rows_of(shortcut)
        mean, variance = moments(rows, x.detach()[0, :, 0, 0])
        move_statistics(norm, mean, variance * len(rows) / (len(rows) - 1))
        inverse = 1 / (variance + norm.eps)
        scale = weight * inverse.sqrt()
        line = numbers(rows, scale), numbers(rows, bias - mean * scale)
        least = real(rows)(floor)

        def piece(_: int, part: slice) -> None:
            normalize(rows[part], *line, None if other is None else other[part], least, out[part])

        in_pieces(rows, piece)
        ctx.save_for_backward(x, None if shortcut is None else y)
        ctx.mean, ctx.inverse, ctx.scale, ctx.line, ctx.floor = mean, inverse, scale, line, least
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        _, _, gradient_sums, gradient = kernels()
        x, y = ctx.saved_tensors
        rows, back = rows_of(x), rows_of(g.contiguous(memory_format=torch.channels_last))
        mean, floor, to_shortcut = numbers(rows, ctx.mean), ctx.floor, None
        if y is None:

            def add(part: slice, *sums: Rows) -> None:
                gradient_sums(back[part], rows[part], None, *ctx.line, floor, mean, None, *sums)

            total, product = sums_of_pieces(rows, add)
        else:
            to_shortcut = torch.empty_like(x)
            above, passed = rows_of(y), rows_of(to_shortcut)

            def add_passed(part: slice, *sums: Rows) -> None:
                gradient_sums(back[part], rows[part], above[part], *ctx.line, floor, mean, passed[part], *sums)

            total, product = sums_of_pieces(rows, add_passed)
            back, floor = passed, real(rows)(-np.inf)

        product += (torch.from_numpy(mean) - ctx.mean) * total  # the kernel had the mean in its own type
        of_x = -ctx.scale * ctx.inverse * product / len(rows)
        constant = numbers(rows, -ctx.scale * total / len(rows) - of_x * ctx.mean)
        slope = numbers(rows, of_x)
        to_x = torch.empty_like(x)
        out = rows_of(to_x)

        def piece(_: int, part: slice) -> None:
            gradient(back[part], rows[part], *ctx.line, floor, slope, constant, out[part])

        in_pieces(rows, piece)
        return to_x, product * ctx.inverse.sqrt(), total, to_shortcut, None, None


def fused(x: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor | None, floor: float) -> Tensor:
    """`FusedNorm` of a norm that `takes` these maps."""
    y: Tensor = FusedNorm.apply(x, norm.weight, norm.bias, shortcut, norm, floor)
    return y


def kernels() -> list[Kernel]:
    """moments, normalize, gradient_sums and gradient of `numba/norm.py`."""
    return machine_code("stepclr.model.numba.norm", "BatchNorm for bfloat16 (about 5 seconds")


def moments(rows: Rows, pivot: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, float64; the variance is divided by the number of positions.

    pivot: a value of each channel, subtracted first, so that a mean far from 0 costs no digits.
    """
    near = numbers(rows, pivot)
    total, squares = sums_of_pieces(rows, lambda part, *sums: kernels()[0](rows[part], near, *sums))
    mean = total / len(rows)
    return pivot + mean, (squares / len(rows) - mean**2).clamp_min(0)


def move_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics, as BatchNorm does; its variance is divided by the positions less one."""
    assert norm.momentum is not None
    assert norm.num_batches_tracked is not None
    for running, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        assert running is not None
        running.lerp_(value.to(running.dtype), norm.momentum)
    norm.num_batches_tracked += 1


def rows_of(maps: Tensor) -> Rows:
    """A row for each position of maps [n, C, h, w] that lie channels last; the same memory, bfloat16 as uint16."""
    rows = maps.detach().permute(0, 2, 3, 1).flatten(0, 2)
    return rows.view(torch.int16).numpy().view(np.uint16) if rows.dtype == torch.bfloat16 else rows.numpy()


def real(rows: Rows) -> type[np.float32] | type[np.float64]:
    """The type that the kernels compute these rows in."""
    return np.float32 if rows.dtype == np.uint16 else np.float64


def numbers(rows: Rows, of_channels: Tensor) -> Rows:
    """A number of each channel, in that type."""
    return of_channels.double().numpy().astype(real(rows))


def sums_of_pieces(rows: Rows, add: Callable[..., None]) -> Float64[Tensor, "2 c"]:
    """Two sums for each channel: of what `add(part, first, second)` adds for each part of the rows."""
    pieces = np.zeros((2, -(-len(rows) // rows_in_piece(rows)), rows.shape[1]))
    in_pieces(rows, lambda piece, part: add(part, *pieces[:, piece]))
    return torch.from_numpy(pieces).sum(1)


def in_pieces(rows: Rows, work: Callable[[int, slice], None]) -> None:
    """Call `work(piece, part)` for each piece of the rows, on all of torch's threads."""
    step = rows_in_piece(rows)

    def some(first: int, last: int) -> None:
        for piece in range(first, last):
            work(piece, slice(piece * step, (piece + 1) * step))

    share_out("norm", some, -(-len(rows) // step), 1, torch.get_num_threads())


def rows_in_piece(rows: Rows) -> int:
    """How many rows a thread goes through at a time."""
    return max(1, PIECE // rows.shape[1])
