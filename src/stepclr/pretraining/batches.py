"""The batches of an epoch, read ahead in a thread while the last one is being worked on."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from stepclr.data.images import ImageBatch, ImageSet
from stepclr.data.order import balanced_order, epoch_order
from stepclr.device import to_device
from stepclr.distributed import ALONE, World
from stepclr.pretraining.gpu_cache import Resident, upload
from stepclr.threads import read_ahead

CPU = torch.device("cpu")


class Batch(NamedTuple):
    """N images with their labels, and which sample of the epoch each is.

    images: uint8 `[N, 3, H, W]`, or a list where sizes differ. labels: int64 `[N]`, -1 where an image has none.
    samples: int64 `[N]`, the index of each image; on its r-th repetition in a balanced epoch, that index + r n, so that
    it has other keys, and so other views.
    """

    images: ImageBatch
    labels: Int64[Tensor, " n"]
    samples: Int64[np.ndarray, " n"]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in a pass over n images; a set smaller than a batch is one batch."""
    return max(1, n // batch_size)


def batches(
    images: ImageSet,
    seed: int,
    epoch: int,
    batch_size: int,
    start: int,
    balanced: bool = False,
    device: torch.device = CPU,
    world: World = ALONE,
) -> Iterator[Batch]:
    """Batch `start` of epoch `epoch` and those after it, in the epoch's own order.

    An image that cannot be read any more is left out; `images.skipped` lists it. Labels lie on `device`, and so do the
    images if it is a GPU, copied ahead, unless `on_device` put them all there already. Of many processes (`world`) each
    is given its own part of every batch; the order does not depend on how many there are.
    """
    n = len(images)
    whole = None if balanced else images.stream(seed, epoch, batch_size, start)  # shards have an order of their own
    if whole is None:
        order = balanced_order(images.labels, seed, epoch) if balanced else epoch_order(seed, epoch, n)
        steps = range(start, steps_per_epoch(n, batch_size))
        whole = (order[k * batch_size : (k + 1) * batch_size] for k in steps)
    own = (samples[world.share(len(samples))] for samples in whole)
    if isinstance(images.store, Resident):  # nothing to read, and the work must be in the order of the caller's
        for samples in own:
            labels = to_device(images.labels[samples % n], device)
            yield Batch(images.store.batch(images.rows[samples % n]), labels, samples)
        return

    def read(samples: NDArray[np.int64]) -> Callable[[], Batch]:
        pixels, readable = images.read_readable(samples % n)
        receive = upload(pixels, device) if device.type != "cpu" else lambda: pixels
        samples = samples[np.isin(samples % n, readable)]
        return lambda: Batch(receive(), to_device(images.labels[samples % n], device), samples)

    for _, receive in read_ahead(own, read):
        yield receive()


def endless(
    images: ImageSet,
    seed: int,
    batch_size: int,
    balanced: bool = False,
    device: torch.device = CPU,
    world: World = ALONE,
) -> Iterator[tuple[int, Batch]]:
    """The batches of one epoch after another, as `batches` gives them, each with its epoch."""
    for epoch in count():
        for batch in batches(images, seed, epoch, batch_size, 0, balanced, device, world):
            yield epoch, batch
