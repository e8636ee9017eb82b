"""The orders in which an epoch visits the images: each is a function of (seed, epoch) and nothing that happened before.

epoch_order     any permutation of a set whose images can be read in any order
balanced_order  every class as often as the others, so that any batch is balanced too
ShardOrder      images in shards: a buffer shuffle that reads few shards at a time

`spread` picks a few of many images, in their order.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from stepclr.splitmix import hashed

LANES = 64  # at most; a batch that they do not divide, and a set of few shards, have fewer
WINDOW = 8192  # images of a lane that are shuffled together


def epoch_order(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " n"]:
    """The order of the n samples in an epoch: a permutation that depends on (seed, epoch, n) alone."""
    # The complement of the seed keeps this stream apart from that of the views.
    return np.argsort(hashed(~seed, epoch, np.arange(n)), kind="stable").astype(np.int64)


def spread(n: int, k: int) -> Int64[np.ndarray, " some"]:
    """At most k of the indices 0 to n - 1, evenly spread, with the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, k)).round().astype(np.int64))


def balanced_order(labels: Int64[np.ndarray, " n"], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """An order of n samples in which every class is equally frequent, spread evenly over the epoch.

    A place is the index of an image; on its r-th repetition it is that index + r n. Images of small classes are
    repeated; some images of large classes are left out, others in each epoch. Images without a label (-1) come once
    each, also spread evenly.
    """
    n = len(labels)
    order = epoch_order(seed, epoch, n)
    groups = np.unique(labels)
    classes = groups[groups >= 0]
    per_class, remainder = divmod(int((labels >= 0).sum()), max(1, len(classes)))
    places, positions = [], []
    for number, group in enumerate(groups):
        members = order[labels[order] == group]
        if group < 0:
            count = len(members)
        else:
            # The first classes take the places that the number of classes does not divide.
            rank = number - (len(groups) - len(classes))
            count = per_class + (rank < remainder)
        turn = np.arange(count)
        places.append(members[turn % len(members)] + turn // len(members) * n)
        # A class's places at equal distances over (0, 1), offset so that the classes alternate.
        positions.append((turn + (number + 0.5) / len(groups)) / len(turn))
    return np.concatenate(places)[np.argsort(np.concatenate(positions), kind="stable")]


class ShardOrder:
    """An epoch's batches of images that lie in shards, the incomplete last one left out.

    The shards are shuffled and laid end to end; that stream is cut into equal lanes. Each lane is shuffled within
    windows and gives every batch an equal part, lane after lane. A rank, which takes a contiguous part of every batch,
    thus reads only the shards of its own lanes where the number of ranks divides that of the lanes. The batches are the
    same for any number of ranks.

    starts: the index of each shard's first image in the set, and the end of the last shard, int64 `[S + 1]`.
    """

    def __init__(self, starts: Int64[np.ndarray, " s1"], seed: int, epoch: int, batch_size: int) -> None:
        counts = np.diff(starts)
        self.key = np.array([seed & (2**64 - 1), epoch], np.uint64)
        self.shards = self._shuffled(len(counts), 0, 0)
        # Of each shard its end in the stream, and what leads from a place in the stream to an index of the set.
        self.ends = np.cumsum(counts[self.shards])
        self.begin = starts[self.shards] - (self.ends - counts[self.shards])
        # Lanes have equal parts of every batch, and there are at most as many as shards that are not empty.
        n = int(starts[-1])
        batch = min(batch_size, n)
        self.steps = n // batch if n else 0
        self.lanes = math.gcd(LANES, batch)
        while self.lanes > max(1, int(np.count_nonzero(counts))):
            self.lanes //= 2
        self.part = batch // self.lanes  # images of one lane in a batch

    def batches(self, start: int = 0) -> Iterator[Int64[np.ndarray, " batch"]]:
        """The indices of batch `start` and of later ones; at most one window per lane is in memory."""
        per_window = max(1, WINDOW // self.part)  # batches
        for first in range(start // per_window * per_window, self.steps, per_window):
            last = min(first + per_window, self.steps)
            window = np.stack([self._window(lane, first, last) for lane in range(self.lanes)])
            for step in range(max(start, first), last):
                begin = (step - first) * self.part
                yield self._indices(window[:, begin : begin + self.part].ravel())

    def following(self) -> dict[int, list[int]]:
        """For each shard, the shards that its lane reads after it within a window."""
        if not self.steps:
            return {}
        length = self.steps * self.part
        lane_ends = (self.ends - 1) // length * length + length
        reached = np.searchsorted(self.ends, np.minimum(self.ends + WINDOW, lane_ends))
        following = {}
        for place, shard in enumerate(self.shards.tolist()):
            if self.ends[place] < lane_ends[place]:  # the lane goes on after this shard
                following[shard] = self.shards[place + 1 : reached[place] + 1].tolist()
        return following

    def _window(self, lane: int, first: int, last: int) -> NDArray[np.int64]:
        """The places in the stream, shuffled, that a lane contributes to the batches from `first` to `last`."""
        begin = (lane * self.steps + first) * self.part
        return begin + self._shuffled((last - first) * self.part, lane, 1 + first)

    def _indices(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        begin: NDArray[np.int64] = self.begin[np.searchsorted(self.ends, places, "right")]
        return places + begin

    def _shuffled(self, n: int, lane: int, draw: int) -> NDArray[np.int64]:
        # Raw numbers of a counter-based generator: NumPy promises that these, unlike `permutation`, never change.
        numbers = np.random.Philox(key=self.key, counter=np.array([0, 0, lane, draw], np.uint64)).random_raw(n)
        return np.argsort(numbers, kind="stable").astype(np.int64)
