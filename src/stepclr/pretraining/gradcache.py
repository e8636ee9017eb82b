"""Large batches on a small machine: the encoder sees the batch a part at a time, head and loss see it whole.

Cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): every
part goes through the encoder and only its h is kept; head and loss give the gradient on all h; then each part goes
through once more, with its gradient. Memory is that of one part, and time about a third more. The gradient is that
of the whole batch, except that BatchNorm in the encoder normalizes each part by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stepclr.data.images import ImageBatch
from stepclr.distributed import World
from stepclr.loss.objectives import BoundLoss
from stepclr.pretraining.step import simclr_step


def simclr_step_in_parts(
    encoder: nn.Module,
    head: nn.Module,
    views: Callable[[ImageBatch, Int64[Tensor, " n"]], Float[Tensor, "v n c s s"]],
    objective: BoundLoss,
    images: ImageBatch,
    keys: Int64[Tensor, " n"],
    labels: Tensor,
    *,
    micro_batch: int,
    world: World,
) -> tuple[Float[Tensor, ""], tuple[Tensor, ...]]:
    """`simclr_step` with at most `micro_batch` images in the encoder at a time."""
    parts = parts_of(len(keys), micro_batch, world)
    if len(parts) == 1:
        return simclr_step(encoder, head, views, objective, images, keys, labels)

    def encode(images: ImageBatch, keys: Int64[Tensor, " n"]) -> Float[Tensor, "v n f"]:
        x = views(images, keys)
        # Autocast would keep one bfloat16 copy of a weight for all parts, and add up their gradients in bfloat16.
        device = x.device.type
        precision = torch.get_autocast_dtype(device)
        with torch.autocast(device, precision, torch.is_autocast_enabled(device), cache_enabled=False):
            h: Tensor = encoder(x.flatten(0, 1))
        return h.unflatten(0, (len(x), -1))

    with _moved_once(encoder, len(parts)) as part_seen:
        results = []
        for part in parts:
            results.append(checkpoint(encode, images[part], keys[part], use_reentrant=False))
            part_seen()
    h = torch.cat(results, dim=1)
    z = head(h.flatten(0, 1)).chunk(len(h))
    return objective(z, labels), z


def teacher_logits(
    teacher: nn.Module,
    views: Callable[[ImageBatch, Int64[Tensor, " n"]], Float[Tensor, "v n c s s"]],
    images: ImageBatch,
    keys: Int64[Tensor, " n"],
    micro_batch: int | None,
    world: World,
) -> Float[Tensor, "vn k"]:
    """What the teacher predicts of the views that the step sees: the same keys give the same views."""
    logits = []
    with torch.no_grad():
        for part in parts_of(len(keys), micro_batch, world):
            x = views(images[part], keys[part])
            logits.append(teacher(x.flatten(0, 1)).unflatten(0, (len(x), -1)))
    return torch.cat(logits, dim=1).flatten(0, 1)


def parts_of(n: int, micro_batch: int | None, world: World) -> list[slice]:
    """Equal parts of n images, of at most `micro_batch` each.

    All ranks use the same number of parts, so that synchronized BatchNorm always normalizes matching parts.
    """
    if micro_batch is None:
        return [slice(0, n)]
    sizes = world.sizes(n)
    count = min(-(-max(sizes) // micro_batch), *sizes)
    parts = np.array_split(np.arange(n), count)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


@contextmanager
def _moved_once(encoder: nn.Module, parts: int) -> Iterator[Callable[[], None]]:
    """A context in which running statistics move once for all parts, by the mean of their moves.

    Call what it yields after each part. Other buffers stay as they are, such as a mask of True and False or of -inf.
    """

    def buffers() -> list[Tensor]:  # listed each time: a module may put another tensor in the place of one
        return [buffer for buffer in _written(encoder) if buffer.dtype != torch.bool]

    before = [buffer.clone() for buffer in buffers()]
    moved = [torch.zeros_like(buffer) for buffer in before]

    def part_seen() -> None:
        for total, buffer, start in zip(moved, buffers(), before, strict=True):
            total += torch.where(buffer == start, torch.zeros_like(start), buffer - start)  # -inf - -inf is not 0
            buffer.copy_(start)

    yield part_seen
    for buffer, total in zip(buffers(), moved, strict=True):
        buffer += total / parts if buffer.is_floating_point() or buffer.is_complex() else total // parts


@contextmanager
def statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """A context for computing activations a second time: BatchNorm's running statistics stay as they are."""
    before = [buffer.clone() for buffer in _written(encoder)]
    yield
    for buffer, value in zip(_written(encoder), before, strict=True):
        buffer.copy_(value)


def _written(encoder: nn.Module) -> list[Tensor]:
    """The buffers that can be written in place: not those that were expanded, whose numbers share memory."""
    return [buffer for buffer in encoder.buffers() if not _expanded(buffer)]


def _expanded(buffer: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
