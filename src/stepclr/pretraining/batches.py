"""The batches of an epoch, read ahead in a thread while the last one is being worked on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray

from stepclr.data.images import ImageSet
from stepclr.data.order import balanced_order, epoch_order
from stepclr.distributed import ALONE, World
from stepclr.pretraining.gpu_cache import ImageBatch, Resident, upload

Places = Int64[np.ndarray, " n"]
Batch = tuple[ImageBatch, Places]  # images and their places in the epoch


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
    device: torch.device | None = None,
    world: World = ALONE,
) -> Iterator[Batch]:
    """(images, their places) of batch `start` and those after it in epoch `epoch`, in the epoch's own order.

    A place is the index of an image; on its r-th repetition in a balanced epoch, that index + r n, so that it has
    other keys, and so other views. An image that cannot be read any more is left out; `images.skipped` lists it.
    device: a GPU to which each batch is copied ahead too. Images that `on_device` put there are there already.
    ranks: each is given its own part of every batch; the order knows nothing of how many there are.
    """
    n = len(images)
    whole = None if balanced else images.stream(seed, epoch, batch_size, start)  # shards have an order of their own
    if whole is None:
        order = balanced_order(images.labels, seed, epoch) if balanced else epoch_order(seed, epoch, n)
        steps = range(start, steps_per_epoch(n, batch_size))
        whole = (order[k * batch_size : (k + 1) * batch_size] for k in steps)
    lots = (lot[world.share(len(lot))] for lot in whole)
    if isinstance(images.store, Resident):  # nothing to read, and the work must be in the order of the caller's
        for lot in lots:
            yield images.store.batch(images.rows[lot % n]), lot
        return

    def read(lot: NDArray[np.int64]) -> tuple[Callable[[], ImageBatch], Places]:
        pixels, kept = images.read_readable(lot % n)
        receive = upload(pixels, device) if device and device.type == "cuda" else lambda: pixels
        return receive, lot[np.isin(lot % n, kept)]

    with ThreadPoolExecutor(1, "feed") as ahead:
        coming = None
        for following in chain(lots, [None]):
            reading = ahead.submit(read, following) if following is not None else None
            if coming:
                receive, places = coming.result()
                yield receive(), places
            coming = reading
