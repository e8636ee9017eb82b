"""What to look at among many images: near duplicates, odd ones out, and the ones to label next.

Pure functions of representations h; the same arguments give the same answer. `duplicates` and `outliers` compare every
image with all others, a block at a time: memory grows with n, time with its square. `to_label_next` compares no more
than LOOKED_AT. `benchmarks/find.py` measures all three.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from stepclr.evaluation.linear import principal_axes, standardize
from stepclr.evaluation.solver import solve
from stepclr.tools.curate.duplicates import SMALL, detail, likeness, threshold

BLOCK = 1000  # rows compared with all others at a time
SURROUNDED = 50  # images nearer than this one, and an image is not odd
NEIGHBORS = 20  # what surrounds an image that may have duplicates
LEAST = 0.05  # of the usual distance to what surrounds an image: many copies of one have no other surroundings
ROUNDING = 1e-4  # cosine distances below are rounding
CLOSE = 0.9  # score from which h alone tells a duplicate
RELAXED = 0.1  # below the bar of details alone may be those of two images whose h are close too
TEMPERATURE = 0.1  # how near an image must be to speak for another: exp((cosine - 1) / T)
LOOKED_AT = 5000  # images, drawn by chance where there are more, among which those to label are chosen
L2 = 0.1  # of the linear layer that tells what is uncertain: where a class has one label, no folds can choose it


class Pairs(NamedTuple):
    """Pairs (i, j) of rows, i < j, the surest first, and how sure each is: 1 for the same image."""

    rows: Int64[np.ndarray, "pairs 2"]
    scores: Float[np.ndarray, " pairs"]


class ToLabel(NamedTuple):
    """Rows to label, the most telling first, and how uncertain the class of each is, 0 to 1; 1 if nothing is known."""

    rows: Int64[np.ndarray, " m"]
    uncertainty: Float[np.ndarray, " m"]


def duplicates(h: Float[np.ndarray, "n features"], thumbnails: UInt8[Tensor, "n side side"] | None = None) -> Pairs:
    """Pairs of images that are versions of one: re-compressed, resized, cropped, lit otherwise, mirrored.

    Candidates are an image's NEIGHBORS nearest by h, closer to it than what surrounds either of the two: with r the
    cosine distance over that to the NEIGHBORS-th nearest, 1 - r is the score of h alone, above CLOSE.
    With the thumbnails of `duplicates.thumbnail` it is a (1 - r/2) instead, a being the cosine of both images'
    details, one of them mirrored if that fits better: on photographs that finds more than either alone.
    """
    x = F.normalize(torch.from_numpy(h).float(), dim=1)
    cosines, rows = _nearest(x, NEIGHBORS)
    if not cosines.numel():
        return Pairs(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    distances = 1 - cosines
    surroundings = distances[:, -1].clamp(min=max(ROUNDING, LEAST * distances[:, -1].median().item()))
    ratio = distances.clamp(min=0) / torch.minimum(surroundings[:, None], surroundings[rows])
    i, place = torch.nonzero(ratio < 1, as_tuple=True)
    both = torch.stack([i, rows[i, place]], 1).sort(dim=1).values
    pairs, where = both.unique(dim=0, return_inverse=True)
    r = torch.ones(len(pairs)).scatter_reduce(0, where, ratio[i, place], "amin")
    scores, bar = 1 - r, CLOSE
    if thumbnails is not None:
        small = detail(F.adaptive_avg_pool2d(thumbnails.float(), SMALL))
        scores, bar = (1 - r / 2) * _details_alike(thumbnails, pairs), threshold(small) - RELAXED
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= bar]
    return Pairs(pairs[order].numpy(), scores[order].numpy())


def outliers(h: Float[np.ndarray, "n features"], k: int = SURROUNDED) -> Float[np.ndarray, " n"]:
    """How odd each image is: the distance |h_i - h_j| to its k-th nearest j, over the median of that; 1 is usual.

    Of fewer than 10 k images it is the one after n / 10. More than k odd ones that resemble each other hide among
    themselves. h is not normalized: its length tells something too.
    """
    if len(h) < 2:
        return np.zeros(len(h))
    x = torch.from_numpy(h).float()
    nearest = min(k, -(-len(x) // 10)) + 1  # the first is the image itself
    far = torch.cat([torch.cdist(rows, x).kthvalue(nearest).values for rows in x.split(BLOCK)]).double()
    usual = far.median().item() or far.max().item() or 1.0
    return (far / usual).numpy()


def to_label_next(
    h: Float[np.ndarray, "n features"], labels: Int64[np.ndarray, " n"], n: int, seed: int = 0
) -> ToLabel:
    """The `n` images without a label (-1) to label next, the most telling first; all of them where they are fewer.

    Greedy facility location: each choice adds most to sum_j w_j max_i exp((cos(h_i, h_j) - 1) / T), where i is labelled
    or chosen: typical images first, and never two for the same others. w_j is 1; once two classes have labels it is
    the root of how uncertain the class of j is: 1 - (p_first - p_second) by a linear layer on h.
    The choice of fewer is the beginning of the choice of more. Above LOOKED_AT images without a label that many are
    looked at, drawn by `seed`; what is asked for beyond them comes in the order of that draw.
    """
    known = np.flatnonzero(labels >= 0)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(labels < 0))
    rows = np.sort(drawn[:LOOKED_AT])
    unsure = _uncertainty(h, labels) if len(np.unique(labels[known])) > 1 else np.ones(len(h))
    x = _directions(h)
    covered = torch.zeros(len(rows))
    for some in torch.from_numpy(known).split(BLOCK):
        if len(some):
            covered = torch.maximum(covered, _nearness(x[some], x[rows]).amax(0))
    weights = torch.from_numpy(unsure[rows]).float().sqrt()
    chosen = rows[_facilities(_nearness(x[rows], x[rows]), covered, weights, n)]
    chosen = np.concatenate([chosen, drawn[LOOKED_AT:n]])
    return ToLabel(chosen, unsure[chosen])


def _facilities(
    nearness: Float[Tensor, "n n"], covered: Float[Tensor, " n"], weights: Float[Tensor, " n"], most: int
) -> list[int]:
    """The greedy choice, lazily (Minoux 1978): gains only shrink, so that most need not be worked out again."""
    gains = torch.cat([(rows - covered).clamp(min=0) @ weights for rows in nearness.split(BLOCK)])
    chosen: list[int] = []
    while len(chosen) < min(most, len(nearness)):
        best = int(gains.argmax())
        gains[best] = (nearness[best] - covered).clamp(min=0) @ weights
        if int(gains.argmax()) == best:
            covered = torch.maximum(covered, nearness[best])
            gains[best] = -torch.inf
            chosen.append(best)
    return chosen


def _uncertainty(h: Float[np.ndarray, "n features"], labels: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 less the margin of the likeliest class over the second, by logistic regression on the labelled rows."""
    known = labels >= 0
    _, classes = np.unique(labels[known], return_inverse=True)
    with threadpool_limits(1, "blas"):
        x, every = standardize(h[known], h)
        x, basis = principal_axes(x)
        layer = solve(x, classes, np.full((len(x), 1), 1 / len(x)), L2)
    likely = torch.from_numpy(layer.logits(every @ basis)[:, 0]).softmax(1).topk(2).values
    unsure: NDArray[np.float64] = (1 - (likely[:, 0] - likely[:, 1])).numpy()
    return unsure


def _details_alike(
    thumbnails: UInt8[Tensor, "n side side"], pairs: Int64[Tensor, "pairs 2"]
) -> Float[Tensor, " pairs"]:
    """The cosine of the details of each pair, as they are or one of them mirrored."""
    alike = [torch.empty(0)]
    for i, j in ((part[:, 0], part[:, 1]) for part in pairs.split(BLOCK) if len(part)):
        a, b = thumbnails[i].float(), thumbnails[j].float()
        alike.append(torch.maximum(likeness(a, b), likeness(a.flip(2), b)))
    return torch.cat(alike)


def _nearness(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    return ((x @ y.T - 1) / TEMPERATURE).exp_()


def _directions(h: Float[np.ndarray, "n features"]) -> Float[Tensor, "n features"]:
    """Unit rows, less their mean, and of unit length again: all h of an encoder point about the same way."""
    x = F.normalize(torch.from_numpy(h).float(), dim=1)
    return F.normalize(x - x.mean(0), dim=1)


def _nearest(x: Float[Tensor, "n features"], k: int) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Cosines to, and rows of, the min(k, n - 1) nearest others of each row, the nearest first."""
    cosines, rows = [], []
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK] @ x.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf  # itself
        values, places = block.topk(min(k, len(x) - 1))
        cosines.append(values)
        rows.append(places)
    return torch.cat(cosines), torch.cat(rows)
