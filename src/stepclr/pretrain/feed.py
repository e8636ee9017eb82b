"""The batches of an epoch, read ahead in a thread while the last one is being worked on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from stepclr.data import ImageSet
from stepclr.views.keys import epoch_order

Batch = tuple[Tensor | list[Tensor], Int64[np.ndarray, " n"]]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in a pass over n pictures; a set smaller than a batch is one batch."""
    return max(1, n // batch_size)


def batches(images: ImageSet, seed: int, epoch: int, batch_size: int, start: int) -> Iterator[Batch]:
    """(pictures, their indices) of batch `start` and those after it in epoch `epoch`, in the epoch's own order.

    A picture that cannot be read any more is left out of its batch; `images.skipped` lists it.
    """
    order = epoch_order(seed, epoch, len(images))
    lots = [order[k * batch_size : (k + 1) * batch_size] for k in range(steps_per_epoch(len(images), batch_size))]
    with ThreadPoolExecutor(1, "feed") as ahead:
        coming = None
        for lot in [*lots[start:], None]:
            following = ahead.submit(images.read_readable, lot) if lot is not None else None
            if coming is not None:
                pictures, kept = coming.result()
                yield pictures, np.asarray(kept)
            coming = following
