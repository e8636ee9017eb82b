"""Many ranks train one model: BatchNorm normalizes the batch of all ranks, and their gradients are averaged.

With the losses' own exchange (`loss/contrastive.py`) W ranks then take the step that one process would take.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from stepclr.distributed import World
from stepclr.loss.contrastive import float32_or_64
from stepclr.pretraining.model import SimCLR


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the images of all ranks, on any device; torch's own SyncBatchNorm refuses the CPU.

    `like`: the BatchNorm whose weights, statistics and (timm's) activation it takes over.
    """

    def __init__(self, like: _BatchNorm, world: World) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.world = world
        self.weight, self.bias = like.weight, like.bias
        for name, statistics in like.named_buffers():
            setattr(self, name, statistics)
        self.drop, self.act = getattr(like, "drop", nn.Identity()), getattr(like, "act", nn.Identity())
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None: ...  # any number of dimensions

    def forward(self, input: Float[Tensor, "n c *rest"]) -> Float[Tensor, "n c *rest"]:
        """`input` normalized with one mean and variance per channel; in eval mode with the running ones."""
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        with torch.autocast(input.device.type, enabled=False):
            x = float32_or_64(input)
            over = [0, *range(2, x.ndim)]
            shape = [1, -1] + [1] * (x.ndim - 2)
            n = self.world.total(x.numel() // x.shape[1])
            mean = self.world.sum(x.sum(over)) / n
            centered = x - mean.view(shape)
            variance = self.world.sum(centered.square().sum(over)) / n
            y = centered * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                y = y * self.weight.view(shape) + self.bias.view(shape)
            self._remember(mean.detach(), variance.detach() * n / max(1, n - 1))
        return self.act(self.drop(y.to(input.dtype)))

    @torch.no_grad()
    def _remember(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        """Update the running statistics, as BatchNorm does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronize_norms(model: SimCLR, world: World) -> None:
    """Replace every BatchNorm by one over all ranks, in place; weights and statistics stay where they are."""
    for name, part in list(model.named_children()):
        on_gpu = next(part.parameters()).is_cuda
        converted = convert_sync_batchnorm(part) if on_gpu else _converted(part, world)  # type: ignore[no-untyped-call]
        setattr(model, name, converted)


def _converted(module: nn.Module, world: World) -> nn.Module:
    if isinstance(module, BatchNorm1d | BatchNorm2d | BatchNorm3d):
        return SyncBatchNorm(module, world)
    for name, child in module.named_children():
        setattr(module, name, _converted(child, world))
    return module


def averaged(model: nn.Module) -> nn.Module:
    """The model, whose backward pass now leaves the mean of all ranks' gradients in its weights.

    The ranks begin with the first one's weights and statistics, so that they are one model from here on.
    """
    # Statistics need not be sent at each step: they are the same on all ranks. Newer versions renamed the option.
    names = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {option: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)


@contextmanager
def stride_warnings_off() -> Iterator[None]:
    """A context in which torch does not warn that the strides of a 1x1 filter differ.

    The bytes of such a filter are the same in both memory formats.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match")
        yield
