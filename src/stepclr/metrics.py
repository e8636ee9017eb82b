"""Pure functions of stored h, z and labels: nearest neighbors, contrastive accuracy, alignment, uniformity, rank.

Also shares as people read them.
"""

import math
from string import Formatter
from typing import Any, SupportsFloat

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stepclr.loss.tiles import log_sums

NEIGHBORS, KNN_TEMPERATURE = 20, 0.1  # of weighted kNN, by default
FEW = 100  # images to score on: where there are fewer, each is worth more than a point
ROWS = 1024  # rows compared with all others at a time, so that memory stays bounded


def in_percent(share: SupportsFloat, std: float | None = None, digits: int = 1) -> str:
    """A share from 0 to 1 as people read it, with its standard deviation if there is one: "82.0 ± 1.2 %"."""
    spread = "" if std is None else f" ± {100 * std:.{digits}f}"
    return f"{100 * float(share):.{digits}f}{spread} %"


def whole_percent(share: SupportsFloat) -> str:
    """`in_percent` without decimals: "82 %"."""
    return in_percent(share, digits=0)


class PercentFormatter(Formatter):
    """`str.format` with percentages as `in_percent` has them."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec.endswith("%"):
            return in_percent(value, digits=int(format_spec[1:-1]))
        return str(super().format_field(value, format_spec))


def coarse_words(count: int) -> str:
    """How many points each of `count` images is worth in a score, in words."""
    return f"each is {100 / count:.1f} points"


def nearest(
    queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], k: int, exclude_self: bool = False
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Cosines to the k nearest rows of `bank` for each query, largest first, and the indices of those rows.

    Both must have rows of unit norm. k is at most m; with `exclude_self`, for queries that are the bank itself, at most
    m - 1, and no row is its own neighbor. `torch.topk` decides between equal cosines.
    """
    k = min(k, len(bank) - exclude_self)
    cosines, indices = [], []
    for start in range(0, len(queries), ROWS):
        cosine = queries[start : start + ROWS] @ bank.T
        if exclude_self:
            cosine.diagonal(start).fill_(-torch.inf)
        largest = cosine.topk(k)
        cosines.append(largest.values)
        indices.append(largest.indices)
    if not cosines:
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    return torch.cat(cosines), torch.cat(indices)


def weighted_knn(
    bank: Float[Tensor, "m features"],
    bank_labels: Int[Tensor, " m"],
    h: Float[Tensor, "n features"],
    k: int = NEIGHBORS,
    temperature: float = KNN_TEMPERATURE,
) -> Int[Tensor, " n"]:
    """Predicted class of each row of h: that with the most `knn_votes`; of classes with equal votes the lower one."""
    return knn_votes(bank, bank_labels, h, k, temperature).argmax(1)


def knn_votes(
    bank: Float[Tensor, "m features"],
    bank_labels: Int[Tensor, " m"],
    h: Float[Tensor, "n features"],
    k: int = NEIGHBORS,
    temperature: float = KNN_TEMPERATURE,
) -> Float[Tensor, "n classes"]:
    """Votes for each row of h: its k nearest rows of `bank` vote for their class with weight exp(cosine / temperature).

    Follows Wu et al. 2018 (1805.01978, section 3.4). Rows need not have unit norm; k is at most m. The votes are
    relative to the weight of the nearest row.
    """
    cosine, indices = nearest(F.normalize(h), F.normalize(bank), k)
    votes = torch.zeros(len(h), int(bank_labels.max()) + 1, device=h.device)
    # Relative to the largest cosine: exp(1 / temperature) overflows float32 at temperature 0.01. A temperature that
    # float32 would take for 0 is one in float64.
    weights = ((cosine - cosine[:, :1]).double() / temperature).exp().to(votes)
    return votes.scatter_add_(1, bank_labels[indices], weights)


def contrastive_top1(z_i: Float[Tensor, "n d"], z_j: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Share of the 2N anchors whose most similar one of the 2N - 1 other projections is their positive.

    SimCLR's code looks for it among the N projections of the other view alone, which is easier.
    """
    z = F.normalize(torch.cat([z_i, z_j]).float())
    correct = torch.zeros((), device=z.device)
    for anchors in torch.arange(len(z), device=z.device).split(ROWS):
        similarity = z[anchors] @ z.T
        similarity.scatter_(1, anchors[:, None], -torch.inf)
        correct += (similarity.argmax(1) == (anchors + len(z_i)) % len(z)).sum()
    return correct / len(z)


def alignment(z_i: Float[Tensor, "n d"], z_j: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared distance between the two normalized projections of an image; 0 is best (Wang & Isola 2020)."""
    return (F.normalize(z_i.float()) - F.normalize(z_j.float())).square().sum(1).mean()


def uniformity(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """log mean exp(-2 |z_a - z_b|^2) over pairs a < b (Wang & Isola 2020, 2005.10242).

    0 means that all projections coincide, about -4 that they are spread out.
    """
    z = F.normalize(z.float())
    # |z_a - z_b|^2 = 2 - 2 z_a.z_b, so the mean over pairs is the loss's own sum at temperature 1/4.
    total = log_sums(z, 0.25).logsumexp(0)
    return total - 4 - math.log(len(z) * (len(z) - 1))


def effective_rank(h: Float[Tensor, "n features"]) -> float:
    """exp of the entropy of the normalized singular values of centered h (Roy & Vetterli 2007).

    It measures how many directions h uses: 1 is collapsed, and the smaller of F and n - 1 is the most. It grows with n:
    compare the values of equally many images.
    """
    singular = torch.linalg.svdvals(h.float() - h.float().mean(0))
    if not singular.sum() > 0:
        return 1.0
    shares = singular / singular.sum()
    return math.exp(float(-(shares * shares.clamp(min=1e-12).log()).sum()))
