"""The batches of an epoch, read ahead in a thread while the last one is being worked on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from stepclr.data import ImageSet
from stepclr.views.keys import epoch_order

Batch = tuple[Tensor | list[Tensor], Int64[np.ndarray, " n"]]  # pictures and their places in the epoch


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in a pass over n pictures; a set smaller than a batch is one batch."""
    return max(1, n // batch_size)


def batches(
    images: ImageSet, seed: int, epoch: int, batch_size: int, start: int, balanced: bool = False
) -> Iterator[Batch]:
    """(pictures, their places) of batch `start` and those after it in epoch `epoch`, in the epoch's own order.

    A place is the index of a picture; on its r-th repetition in a balanced epoch, that index + r n, so that it has
    other keys, and so other views. A picture that cannot be read any more is left out; `images.skipped` lists it.
    """
    n = len(images)
    order = balanced_order(images.labels, seed, epoch) if balanced else epoch_order(seed, epoch, n)
    lots = [order[k * batch_size : (k + 1) * batch_size] for k in range(steps_per_epoch(n, batch_size))]
    with ThreadPoolExecutor(1, "feed") as ahead:
        coming = None
        for lot in [*lots[start:], None]:
            following = ahead.submit(images.read_readable, lot % n) if lot is not None else None
            if coming is not None:
                pictures, kept = coming[0].result()
                yield pictures, coming[1][np.isin(coming[1] % n, kept)]
            coming = (following, lot) if following is not None and lot is not None else None


def balanced_order(labels: Int64[np.ndarray, " n"], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The n places of an epoch in which all classes have as many, spread evenly, so that any batch is balanced too.

    Small classes are repeated; of large ones some pictures are left out, others each epoch. Pictures without a label
    come once each, spread likewise.
    """
    n = len(labels)
    order = epoch_order(seed, epoch, n)
    groups = np.unique(labels)
    classes = groups[groups >= 0]
    labelled = int((labels >= 0).sum())
    share, spare = divmod(labelled, max(1, len(classes)))
    places, positions = [], []
    for number, group in enumerate(groups):
        members = order[labels[order] == group]
        rank = number - (len(groups) - len(classes))  # of the class; -1: no label
        turn = np.arange(len(members) if rank < 0 else share + (rank < spare))
        places.append(members[turn % len(members)] + turn // len(members) * n)
        positions.append((turn + (number + 0.5) / len(groups)) / len(turn))
    return np.concatenate(places)[np.argsort(np.concatenate(positions), kind="stable")]
