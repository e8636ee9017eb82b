"""Counter-based random numbers: SplitMix64 (Steele, Lea & Flood 2014), one stream a key, any number of it at any time.

No draw depends on what was drawn before, so a view is the same in any batch, order, thread count and after any restart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
NUMBERS = 64  # that a view of a key has
Indices = Tensor | NDArray[np.integer] | Sequence[int]


def view_keys(seed: int, epoch: int, indices: Indices) -> Int64[Tensor, " n"]:
    """Keys int64 `[N]`, one for each sample: a hash of (seed, epoch, sample index)."""
    return torch.from_numpy(_hash(seed, epoch, indices).view(np.int64))


def epoch_order(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " n"]:
    """The order in which epoch `epoch` meets the n samples: a permutation that depends on (seed, epoch, n) alone."""
    # The complement of the seed keeps this stream apart from that of the views.
    return np.argsort(_hash(~seed, epoch, np.arange(n)), kind="stable").astype(np.int64)


def uniforms(keys: Int64[np.ndarray, " n"], view: int, count: int) -> Float[np.ndarray, "n count"]:
    """`count` numbers U[0, 1) for each key, float64; view v has its own."""
    if count > NUMBERS:
        raise ValueError(f"a view has {NUMBERS} numbers; with more, views would share some")
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(NUMBERS * view)
    bits = _mix(_mix(keys.view(np.uint64))[:, None] + counter[None, :] * GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53


def _hash(seed: int, epoch: int, indices: Indices) -> UInt64[np.ndarray, " n"]:
    index = np.asarray(indices, dtype=np.int64).view(np.uint64)
    state = _mix(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    return _mix(_mix(state + np.uint64(epoch)) + index)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = state + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
