"""Near-duplicate images of an index: neighbors by h whose thumbnails agree in detail."""

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stepclr.data.details import COARSE_PX, MAX_THRESHOLD, cosine_quantile, detail, gray_thumbnail, groups
from stepclr.errors import check_whole
from stepclr.metrics import nearest
from stepclr.tools.curate.alignment import aligned_likeness
from stepclr.tools.curate.table import COLUMNS, Table
from stepclr.tools.images import thumbnail_pixels
from stepclr.tools.search.index import EmbeddingIndex, open_index

NEIGHBORS = 20  # candidates per image; the distance to the last of them is the scale of an image's surroundings
MIN_SCALE = 0.05  # of the median scale: an image with many copies has no other surroundings
ROUNDING = 1e-4  # cosine distances below are rounding errors
MIN_SCORE = 0.9  # score from which h alone decides
PENALTY = 0.1  # of a pair whose h are as far apart as others in its surroundings
# The least score with details, of photographs, whose coarse details have at most the cosine PHOTOGRAPHS in the share
# QUANTILE of all pairs; what exceeds that raises it (chosen on garments and photographs, see benchmarks/find.py).
LEAST, QUANTILE, PHOTOGRAPHS, RISE = 0.85, 0.99, 0.3, 0.24


@dataclass(frozen=True)
class Duplicates:
    """The near duplicates of an index.

    Attributes:
        pairs: int64 `[P, 2]`, indices (i, j) with i < j, the most certain pair first.
        scores: `[P]`, how certain each pair is; 1 for the same image.
        groups: the images that pairs connect; the group with the most certain pair first.
    """

    pairs: Int64[np.ndarray, "pairs 2"]
    scores: Float[np.ndarray, " pairs"]
    groups: list[list[int]]
    index: EmbeddingIndex

    def table(self, n: int) -> Table:
        """The `n` most certain groups: each of their pairs is a row, each group a row of the contact sheet."""
        check_whole("n", n, 1)
        group_of = {i: number for number, group in enumerate(self.groups[:n], 1) for i in group}
        rows = []
        for (i, j), score in zip(self.pairs.tolist(), self.scores.tolist(), strict=True):
            if i in group_of:
                rows.append((group_of[i], self.index.paths[i], self.index.paths[j], round(score, 4)))
        rows.sort(key=lambda row: row[0])  # within a group the most certain pair stays first
        sheet = []
        for number, group in enumerate(self.groups[:n], 1):
            caption = f"group {number}"
            if len(group) > COLUMNS:
                caption += f" +{len(group) - COLUMNS} more"
            sheet.append([(i, caption) for i in group[:COLUMNS]])
        count = sum(len(group) for group in self.groups)
        groups = f"{len(self.groups):,} group{'s' * (len(self.groups) != 1)}"
        summary = f"{count:,} of {len(self.index):,} images are versions of another image: {groups}"
        if len(self.groups) > n:
            summary += f"; listing the {n:,} most certain"
        return Table(("group", "path", "other", "score"), rows, sheet, summary)


def find_duplicates(index: str | os.PathLike[str] | EmbeddingIndex) -> Duplicates:
    """Images of an index that are versions of one image: re-compressed, resized, cropped, relit or mirrored.

    `index` is what `stepclr embed` wrote, or an `EmbeddingIndex`. `duplicate_pairs` describes the method; thumbnails
    are compared where the index has them. Raises StepclrError if the index cannot be read.
    """
    index = open_index(index)
    thumbnails = None
    if index.thumbnails:
        thumbnails = torch.stack([gray_thumbnail(thumbnail_pixels(content)) for content in index.thumbnails])
    pairs, scores = duplicate_pairs(index.vectors, thumbnails)
    every = groups([(i, j) for i, j in pairs.tolist()])
    group_of = {i: number for number, group in enumerate(every) for i in group}
    by_certainty = dict.fromkeys(group_of[i] for i in pairs[:, 0].tolist())
    return Duplicates(pairs, scores, [every[number] for number in by_certainty], index)


def duplicate_pairs(
    h: Float[np.ndarray, "n features"], thumbnails: UInt8[Tensor, "n side side"] | None = None
) -> tuple[Int64[np.ndarray, "pairs 2"], Float[np.ndarray, " pairs"]]:
    """Pairs (i, j) of near duplicates among representations h, i < j, and their scores; the most certain first.

    Candidates are the NEIGHBORS nearest rows by cosine. With r the cosine distance of a pair over the distance of
    either image to its NEIGHBORS-th nearest (the smaller one), the score by h alone is 1 - r, and MIN_SCORE is needed.
    With thumbnails, made by `gray_thumbnail`, the score is a - PENALTY r, where a is the cosine of both images'
    details once they are aligned. LEAST is needed, and more where all images resemble each other, as garments do.
    """
    x = F.normalize(torch.from_numpy(h).float(), dim=1)
    if len(x) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    cosines, rows = nearest(x, x, NEIGHBORS, exclude_self=True)
    distances = 1 - cosines
    scale = distances[:, -1].clamp(min=max(ROUNDING, MIN_SCALE * distances[:, -1].median().item()))
    ratio = distances.clamp(min=0) / torch.minimum(scale[:, None], scale[rows])
    # Each pair once, with the smaller of its two ratios: i may be a neighbor of j and j one of i.
    i, place = torch.nonzero(ratio < 1, as_tuple=True)
    both = torch.stack([i, rows[i, place]], 1).sort(dim=1).values
    pairs, pair_of = both.unique(dim=0, return_inverse=True)
    r = torch.ones(len(pairs)).scatter_reduce(0, pair_of, ratio[i, place], "amin")
    scores, least = 1 - r, MIN_SCORE
    if thumbnails is not None:
        least = _least_score(thumbnails)
        penalty = PENALTY * r
        possible = 1 - penalty >= least  # the others need not be aligned
        pairs, penalty = pairs[possible], penalty[possible]
        scores = aligned_likeness(thumbnails[pairs[:, 0]], thumbnails[pairs[:, 1]], least) - penalty
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= least]
    return pairs[order].numpy(), scores[order].numpy()


def _least_score(thumbnails: UInt8[Tensor, "n side side"]) -> float:
    coarse = detail(F.adaptive_avg_pool2d(thumbnails.float(), COARSE_PX))
    excess = max(0.0, cosine_quantile(coarse, QUANTILE) - PHOTOGRAPHS)
    return min(MAX_THRESHOLD, LEAST + RISE * excess)
