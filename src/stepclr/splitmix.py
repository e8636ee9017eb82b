"""SplitMix64 (Steele, Lea & Flood 2014) as a counter-based generator: a random number is a hash of what it is for.

No number depends on what was drawn before. A view and the order of an epoch are therefore the same in any batch, with
any number of threads or ranks, and after any restart.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Indices = Tensor | NDArray[np.integer] | Sequence[int]


def mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The generator's output for each state, a 64-bit integer."""
    z = state + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashed(seed: int, epoch: int, indices: Indices) -> UInt64[np.ndarray, " n"]:
    """A hash of (seed, epoch, index) for each index."""
    index = np.asarray(indices, dtype=np.int64).view(np.uint64)
    state = mix(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    return mix(mix(state + np.uint64(epoch)) + index)
