"""The order in which an epoch meets images in shards: a buffer shuffle, a function of (seed, epoch) alone.

The shards are shuffled and laid end to end; that stream is cut into equal lanes. Each lane is shuffled within windows
and gives every batch an equal part, lane after lane. So ranks, each with its contiguous part of every batch, read the
shards of their own lanes and no others, where their number divides that of the lanes; any other number, and one process
alone, meets the same batches.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

LANES = 64  # at most; a batch that they do not divide, and a set of few shards, have fewer
WINDOW = 8192  # images of a lane that are shuffled together


class ShardOrder:
    """An epoch's batches of images that lie in shards, the incomplete last one left out.

    Args: starts: where each shard's images begin in the set, and where the last ones end, int64 `[S + 1]`.
    """

    def __init__(self, starts: Int64[np.ndarray, " s1"], seed: int, epoch: int, batch_size: int) -> None:
        counts = np.diff(starts)
        self.key = np.array([seed & (2**64 - 1), epoch], np.uint64)
        self.shards = self._shuffled(len(counts), 0, 0)
        self.ends = np.cumsum(counts[self.shards])  # in the stream
        self.begin = starts[self.shards] - (self.ends - counts[self.shards])  # from a place in the stream to the set
        n = int(starts[-1])
        batch = min(batch_size, n)
        self.steps = n // batch if n else 0
        self.lanes = math.gcd(LANES, batch)
        most = max(1, int(np.count_nonzero(counts)))
        while self.lanes > most:
            self.lanes //= 2
        self.part = batch // self.lanes  # images of a lane in a batch

    def batches(self, start: int = 0) -> Iterator[Int64[np.ndarray, " batch"]]:
        """The images of batch `start` and of those after it; no more than a window a lane is ever held."""
        turns = max(1, WINDOW // self.part)  # batches that a window lasts
        for first in range(start // turns * turns, self.steps, turns):
            last = min(first + turns, self.steps)
            window = np.stack([self._window(lane, first, last) for lane in range(self.lanes)])
            for step in range(max(start, first), last):
                at = slice((step - first) * self.part, (step - first + 1) * self.part)
                yield self._images(window[:, at].ravel())

    def following(self) -> dict[int, list[int]]:
        """The shards that a lane comes to within a window after each shard."""
        if not self.steps:
            return {}
        length = self.steps * self.part
        lane_ends = (self.ends - 1) // length * length + length
        reached = np.searchsorted(self.ends, np.minimum(self.ends + WINDOW, lane_ends))
        return {
            int(shard): self.shards[place + 1 : reached[place] + 1].tolist()
            for place, shard in enumerate(self.shards)
            if self.ends[place] < lane_ends[place]
        }

    def _window(self, lane: int, first: int, last: int) -> NDArray[np.int64]:
        """The places in the stream, shuffled, that a lane gives to batches `first` to `last`."""
        begin = (lane * self.steps + first) * self.part
        return begin + self._shuffled((last - first) * self.part, lane, 1 + first)

    def _images(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        begin: NDArray[np.int64] = self.begin[np.searchsorted(self.ends, places, "right")]
        return places + begin

    def _shuffled(self, n: int, lane: int, draw: int) -> NDArray[np.int64]:
        # Raw numbers of a counter-based generator: NumPy promises that these, unlike `permutation`, never change.
        numbers = np.random.Philox(key=self.key, counter=np.array([0, 0, lane, draw], np.uint64)).random_raw(n)
        return np.argsort(numbers, kind="stable").astype(np.int64)


def spread(n: int, k: int) -> Int64[np.ndarray, " some"]:
    """At most k of n places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, k)).round().astype(np.int64))
