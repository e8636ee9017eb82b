"""Unusual images of an index: those far from all others, in whitened h or in simple statistics of their pixels."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stepclr.data.order import spread
from stepclr.errors import check_whole
from stepclr.tools.curate.table import Table
from stepclr.tools.images import thumbnail_pixels
from stepclr.tools.search.index import EmbeddingIndex, open_index

BLOCK = 1000  # rows compared with all others at a time
NEIGHBOR = 50  # an image with this many close neighbors is not an outlier
SAMPLE = 10_000  # rows of h from which its covariance is estimated
SIDE, BANDS = 32, 4  # pixels of a side, and how often it is halved, for the statistics
TONE, LEAST = 10.0, 0.1  # gray levels that count as much as a factor of e in contrast; the least deviation


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
        if not self.index.thumbnails:
            summary += ", by their features alone: the index has no thumbnails, so noise may be missed"
        return Table(("rank", "path", "label", "score"), rows, [cells], summary)


def find_outliers(index: str | os.PathLike[str] | EmbeddingIndex, n: int = 50) -> Outliers:
    """The `n` most unusual images of an index, by `outlier_scores`; all of them if there are fewer.

    `index` is what `stepclr embed` wrote, or an `EmbeddingIndex`. An index without thumbnails (an .npz) is judged by h
    alone. Raises StepclrError if it cannot be read.
    """
    check_whole("n", n, 1)
    index = open_index(index)
    statistics = None
    if index.thumbnails:
        statistics = pixel_statistics(thumbnail_pixels(content) for content in index.thumbnails)
    scores = outlier_scores(index.vectors, statistics)
    indices = np.argsort(-scores, kind="stable")[:n]
    return Outliers(indices, scores[indices], index)


def outlier_scores(
    h: Float[np.ndarray, "n features"], statistics: Float[np.ndarray, "n columns"] | None = None, k: int = NEIGHBOR
) -> Float[np.ndarray, " n"]:
    """How unusual each image is: its distance to its k-th nearest neighbor over the median of that; 1 is typical.

    The distance is |h_i - h_j|, h whitened: the directions in which images differ most are those of the classes, and an
    unusual image stands out in others. An encoder may represent what it never met, such as noise, like a common image.
    So the same is computed of the `statistics` of the pixels, and the larger of both counts, once their logarithms have
    the same median deviation. With fewer than 10 k images, k is a tenth of them. More than k outliers that resemble
    each other are not found. Memory grows with n, time with its square.
    """
    if len(h) < 2:
        return np.zeros(len(h))
    scores = _relative_distances(whitened(h), k)
    if statistics is None:
        return scores
    of_pixels = _relative_distances(torch.from_numpy(statistics), k)
    scale = _spread(scores) / _spread(of_pixels)
    return np.maximum(scores, of_pixels**scale)


def whitened(h: Float[np.ndarray, "n features"]) -> Float[Tensor, "n features"]:
    """h turned and scaled so that its covariance is about the identity; distances then count every direction alike.

    The covariance is that of at most SAMPLE rows, drawn toward a multiple of the identity, as far as there are few rows
    for the features: with no more rows than features, all directions are scaled alike.
    """
    sample = h[spread(len(h), SAMPLE)].astype(np.float64)
    count, features = sample.shape
    center = sample.mean(0)
    centered = sample - center
    covariance = centered.T @ centered / count
    share = min(1.0, features / count)
    covariance = (1 - share) * covariance + share * covariance.trace() / features * np.eye(features)
    variances, axes = np.linalg.eigh(covariance)
    # Where all rows are equal, every variance is 0, and so is every distance.
    scaled = (axes / np.sqrt(variances.clip(np.finfo(np.float32).tiny))).astype(np.float32)
    return torch.from_numpy((h - center.astype(np.float32)) @ scaled)


def pixel_statistics(images: Iterable[UInt8[Tensor, "c _ _"]]) -> Float[np.ndarray, "n 18"]:
    """Statistics of each image: mean, contrast, and the contrast of BANDS bands of frequencies, of three planes.

    The planes are luma, which is the mean of the channels, and the differences of the last and of the first channel
    from luma. Each column is divided by its standard deviation over the images.
    """
    statistics = torch.stack([_statistics(image) for image in images])
    # What hardly varies, such as the colors of gray images, is not enlarged to the size of what does.
    return (statistics / statistics.std(0, correction=0).clamp(min=LEAST)).numpy()


def _statistics(image: UInt8[Tensor, "c h w"]) -> Float[Tensor, "18"]:
    levels = F.interpolate(image[None].float(), (SIDE, SIDE), mode="bilinear", antialias=True)[0]
    luma = reduce(torch.add, levels.unbind()) / len(levels)
    channels = torch.stack([luma, levels[-1] - luma, levels[0] - luma])[None]
    columns = [channels.mean((0, 2, 3)) / TONE, channels.std((0, 2, 3)).log1p()]
    for _ in range(BANDS):
        coarse = F.avg_pool2d(channels, 2)
        band = channels - F.interpolate(coarse, scale_factor=2.0)
        columns.append(band.square().mean((0, 2, 3)).sqrt().log1p())
        channels = coarse
    return torch.cat(columns)


def _relative_distances(x: Float[Tensor, "n columns"], k: int) -> Float[np.ndarray, " n"]:
    """The distance of each row to its k-th nearest other row, over the median of these distances."""
    x = x.float()
    kth = min(k, -(-len(x) // 10)) + 1  # the first is the image itself
    distances = torch.cat([torch.cdist(rows, x).kthvalue(kth).values for rows in x.split(BLOCK)]).double()
    # A median of 0 (most images are copies) gives way to the largest distance, and where all are equal to 1.
    typical = distances.median().item() or distances.max().item() or 1.0
    return (distances / typical).numpy()


def _spread(scores: Float[np.ndarray, " n"]) -> float:
    """The median deviation of the logarithm from that of a typical score, which is 0."""
    return max(0.01, float(np.median(np.abs(np.log(scores.clip(1e-3))))))
