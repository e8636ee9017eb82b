"""Keys of views, and the random numbers of a key: any view of any sample can be drawn at any time.

No draw depends on what was drawn before, so a view is the same in any batch, order, thread count and after any restart.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stepclr.splitmix import GOLDEN, Indices, hashed, mix

NUMBERS = 64  # that a view of a key has


def view_keys(seed: int, epoch: int, indices: Indices) -> Int64[Tensor, " n"]:
    """Keys int64 `[N]`, one for each sample: a hash of (seed, epoch, sample index)."""
    return torch.from_numpy(hashed(seed, epoch, indices).view(np.int64))


def uniforms(keys: Int64[np.ndarray, " n"], view: int, count: int) -> Float[np.ndarray, "n count"]:
    """`count` numbers U[0, 1) for each key, float64; view v has its own."""
    if count > NUMBERS:
        raise ValueError(f"a view has {NUMBERS} numbers; with more, views would share some")
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(NUMBERS * view)
    bits = mix(mix(keys.view(np.uint64))[:, None] + counter[None, :] * GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53
