"""Large batches on a small machine: the encoder sees the batch a part at a time, head and loss see it whole.

Cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): every
part goes through the encoder and only its h is kept; head and loss give the gradient on all h; then each part goes
through once more, its gradient in hand. Memory is that of one part and time about a third more. The gradient is that
of the whole batch, but for BatchNorm in the encoder, which normalizes each part by itself, as it would on so many
devices.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stepclr.distributed import ALONE, World

Encode = Callable[[Tensor | Sequence[Tensor], Int64[Tensor, " n"]], tuple[Tensor, ...]]


def in_micro_batches(
    encode: Encode,
    images: Tensor | Sequence[Tensor],
    keys: Int64[Tensor, " n"],
    micro_batch: int | None,
    encoder: nn.Module,
    world: World = ALONE,
) -> tuple[Float[Tensor, "v n _"], ...]:
    """`encode(images, keys)`, called on equal parts of at most `micro_batch` images, and again on the way back.

    encode: N images and their keys -> tensors `[V, N, _]`. It must draw from its keys, or from torch's generator
    (whose state is replayed). `encoder`: its running statistics move once, by the mean of what the parts would.
    `ranks`: all take as many parts, each of its own images, for BatchNorm meets the same part of all.
    """
    sizes = world.sizes(len(keys)) if micro_batch else [len(keys)]
    parts = min(-(-max(sizes) // (micro_batch or len(keys))), *sizes)
    if parts == 1:
        return encode(images, keys)
    before = [buffer.clone() for buffer in encoder.buffers()]
    moved = [torch.zeros_like(buffer) for buffer in encoder.buffers()]
    results = []
    for at in torch.arange(len(keys)).tensor_split(parts):
        part = slice(int(at[0]), int(at[-1]) + 1)
        results.append(checkpoint(encode, images[part], keys[part], use_reentrant=False))
        for total, buffer, start in zip(moved, encoder.buffers(), before, strict=True):
            total += buffer - start
            buffer.copy_(start)
    for buffer, total in zip(encoder.buffers(), moved, strict=True):
        buffer += total / parts if buffer.is_floating_point() else total // parts
    return tuple(torch.cat(column, 1) for column in zip(*results, strict=True))


@contextmanager
def counted_once(encoder: nn.Module) -> Iterator[None]:
    """Computing activations again shows BatchNorm a batch a second time: its statistics stay as they are now."""
    before = [buffer.clone() for buffer in encoder.buffers()]
    yield
    for buffer, value in zip(encoder.buffers(), before, strict=True):
        buffer.copy_(value)
