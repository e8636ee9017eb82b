"""Keys of views, and the random numbers of a key: any view of any image can be made at any time.

No random number depends on those drawn before. A view is therefore the same in any batch, in any order, with any number
of threads, and after any restart.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stepclr.splitmix import GOLDEN, Indices, hashed, mix

NUMBERS = 64  # random numbers of each view of a key


def view_keys(seed: int, epoch: int, indices: Indices) -> Int64[Tensor, " n"]:
    """Keys int64 `[N]`, one for each image: a hash of (seed, epoch, index of the image)."""
    return torch.from_numpy(hashed(seed, epoch, indices).view(np.int64))


def uniforms(keys: Int64[np.ndarray, " n"], view: int, count: int) -> Float[np.ndarray, "n count"]:
    """`count` numbers U[0, 1) for each key, float64; each view has its own."""
    if count > NUMBERS:
        raise ValueError(f"a view has {NUMBERS} random numbers; with {count}, views would share some")
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(NUMBERS * view)
    bits = mix(mix(keys.view(np.uint64))[:, None] + counter[None, :] * GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53
