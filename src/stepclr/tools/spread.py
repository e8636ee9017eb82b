"""A few of many, evenly spread: which images, rows or points a page or a trial shows."""

import numpy as np
from jaxtyping import Int64


def spread(n: int, k: int) -> Int64[np.ndarray, " some"]:
    """At most k of the indices 0 to n - 1, evenly spread; the first and the last are among them."""
    return np.unique(np.linspace(0, n - 1, min(n, k)).round().astype(np.int64))
