"""Unusual images of an index: those that are far from all others."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64

from stepclr.errors import check_number
from stepclr.tools.curate.table import Table
from stepclr.tools.search.index import EmbeddingIndex, open_index

BLOCK = 1000  # rows compared with all others at a time
NEIGHBOR = 50  # an image with this many close neighbors is not an outlier


@dataclass(frozen=True)
class Outliers:
    """The most unusual images of an index, the most unusual first.

    Attributes:
        indices: int64 `[m]`.
        scores: float64 `[m]`, as `outlier_scores` defines them: 1 is typical.
    """

    indices: Int64[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]
    index: EmbeddingIndex

    def table(self) -> Table:
        """A row per image; all of them in one contact sheet."""
        rows, cells = [], []
        for rank, (i, score) in enumerate(zip(self.indices.tolist(), self.scores.tolist(), strict=True), 1):
            rows.append((rank, self.index.paths[i], self.index.class_name(i) or "", round(score, 4)))
            cells.append((i, f"{rank}  {score:.3f}"))
        summary = f"the {len(rows):,} most unusual of {len(self.index):,} images"
        return Table(("rank", "path", "label", "score"), rows, [cells], summary)


def find_outliers(index: str | os.PathLike[str] | EmbeddingIndex, n: int = 50) -> Outliers:
    """The `n` most unusual images of an index, by `outlier_scores`; all of them if there are fewer.

    `index` is what `stepclr embed` wrote, or an `EmbeddingIndex`. Raises StepclrError if it cannot be read.
    """
    check_number("n", n, 1)
    index = open_index(index)
    scores = outlier_scores(index.vectors)
    indices = np.argsort(-scores, kind="stable")[:n]
    return Outliers(indices, scores[indices], index)


def outlier_scores(h: Float[np.ndarray, "n features"], k: int = NEIGHBOR) -> Float[np.ndarray, " n"]:
    """How unusual each image is: |h_i - h_j| to its k-th nearest neighbor j, over the median of that; 1 is typical.

    With fewer than 10 k images, k is a tenth of them. A group of more than k outliers that resemble each other is not
    found. h is not normalized, because its length is informative too. Memory grows with n, time with its square.
    """
    if len(h) < 2:
        return np.zeros(len(h))
    x = torch.from_numpy(h).float()
    kth = min(k, -(-len(x) // 10)) + 1  # the first is the image itself
    distances = torch.cat([torch.cdist(rows, x).kthvalue(kth).values for rows in x.split(BLOCK)]).double()
    # A median of 0 (most images are copies) gives way to the largest distance, and where all are equal to 1.
    typical = distances.median().item() or distances.max().item() or 1.0
    return (distances / typical).numpy()
