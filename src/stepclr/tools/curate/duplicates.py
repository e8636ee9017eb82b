"""Which images are one image: re-compressed, resized, slightly cropped or brightened versions of each other.

Each image becomes a gray thumbnail of 32 px, and that its detail: what differs from its surroundings, over how much
those differ, so that neither light nor frame nor sky makes two images alike. Candidates are pairs whose small details
point the same way, found by blocked matrix products; each is then laid over the other in CROPS ways and judged at full
detail. The time grows with the square of the number of images. Mirrored or turned ones are other images, and one
without any detail is like no other.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

SMALL = 16  # px, of the reduced thumbnails that candidates are found by
WINDOW = 7  # px, the surroundings
FLOOR = 10.0  # grey levels: what differs by less is noise rather than detail
ALIKE = 0.8  # cosine from which two details are of one image (see benchmarks/duplicates.py),
SLACK = 0.25  # and how far below that their small ones may be, not yet laid over each other
# Where any two images are as alike as garments on black (quantile USUAL above NATURAL), one must be the other's twin.
USUAL, NATURAL, RISE, STRICTEST = 0.95, 0.25, 0.45, 0.98
FEW = 15  # images, too few to tell what is usual
MOST = 8  # candidates of an image: of a hundred versions each is still in the group
BLOCK = 1000
CROPS = [(0.0, 0.0, 0.0)] + [(c * x, c * y, c) for c in (0.025, 0.05) for x in (0, 0.5, 1) for y in (0, 0.5, 1)]


def near_pairs(
    images: UInt8[Tensor, "n side side"], others: UInt8[Tensor, "m side side"] | None = None
) -> tuple[Int64[np.ndarray, "pairs 2"], Float[np.ndarray, " pairs"]]:
    """Pairs (i, j) of thumbnails that show one image, and how alike they are: ALIKE to 1.

    i < j among `images` themselves; with `others`, i counts in `images` and j in `others`. ALIKE is the bar for
    photographs, and higher where all the images resemble each other.
    """
    queries = images.float()
    bank = queries if others is None else others.float()
    small = [detail(F.adaptive_avg_pool2d(x, SMALL)) for x in ([queries] if others is None else [queries, bank])]
    bar = threshold(small[-1])
    pairs = neighbors(small[0], small[-1], bar - SLACK, MOST, same=others is None)
    alike = torch.cat([likeness(queries[p[:, 0]], bank[p[:, 1]]) for p in pairs.split(BLOCK)])
    near = alike >= bar
    return pairs[near].numpy(), alike[near].numpy()


def neighbors(
    queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], least: float, most: int, same: bool
) -> Int64[Tensor, "pairs 2"]:
    """Pairs (i, j) of rows, of unit length, whose cosine is at least `least`: of each i the `most` nearest j.

    same: the two are one set; then i < j.
    """
    found = []
    for start in range(0, len(queries), BLOCK):
        first = start if same else 0
        cosines = queries[start : start + BLOCK] @ bank[first:].T
        if same:
            cosines = cosines.triu(1)
        row, column = torch.nonzero(cosines >= least, as_tuple=True)
        if len(row) > most * len(cosines):
            values, columns = cosines.topk(min(most, cosines.shape[1]))
            row, place = torch.nonzero(values >= least, as_tuple=True)
            column = columns[row, place]
        found.append(torch.stack([row + start, column + first], 1))
    return torch.cat(found) if found else torch.empty(0, 2, dtype=torch.int64)


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The images that pairs connect, group by group, each in order; the largest group first."""
    leader: dict[int, int] = {}

    def find(i: int) -> int:
        while leader.setdefault(i, i) != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, j in pairs:
        leader[find(max(i, j))] = find(min(i, j))
    members: dict[int, list[int]] = {}
    for i in sorted(leader):
        members.setdefault(find(i), []).append(i)
    return sorted(members.values(), key=lambda group: (-len(group), group))


def detail(grey: Float[Tensor, "n s s"]) -> Float[Tensor, "n pixels"]:
    """What each pixel differs by from its surroundings, over their contrast; of unit length."""
    blur = _blur(grey.shape[-1])
    difference = grey - blur @ grey @ blur.T
    contrast = (blur @ difference.square() @ blur.T).clamp(min=0).sqrt()
    return F.normalize((difference / (contrast + FLOOR)).flatten(1), dim=1)


def threshold(small: Float[Tensor, "n pixels"]) -> float:
    """From which cosine on two images are one, by how alike any two of these are."""
    some = small[:: 1 + len(small) // BLOCK]
    if len(some) < FEW:
        return ALIKE
    row, column = torch.triu_indices(len(some), len(some), 1)
    usual = (some @ some.T)[row, column].kthvalue(round(USUAL * len(row))).values.item()
    return min(STRICTEST, ALIKE + RISE * max(0.0, usual - NATURAL))


def likeness(a: Float[Tensor, "n s s"], b: Float[Tensor, "n s s"]) -> Float[Tensor, " n"]:
    """The cosine of the details of each pair, where one is laid over the other's crop that fits best."""
    best = torch.full((len(a),), -1.0)
    for whole, part in ((a, b), (b, a)):
        small, target = F.adaptive_avg_pool2d(whole, SMALL), detail(F.adaptive_avg_pool2d(part, SMALL))
        fits = torch.stack([(detail(_cropped(small, crop)) * target).sum(1) for crop in CROPS])
        chosen, target = fits.argmax(0), detail(part)
        for number in chosen.unique().tolist():
            at = chosen == number
            cosine = (detail(_cropped(whole[at], CROPS[number])) * target[at]).sum(1)
            best[at] = torch.maximum(best[at], cosine)
    return best


def _cropped(x: Float[Tensor, "n s s"], crop: tuple[float, float, float]) -> Float[Tensor, "n s s"]:
    """Images without the share `crop[2]` of their sides, (top, left) of it before; bilinear, as large as before."""
    top, left, cut = crop
    return _stretch(x.shape[-1], top, cut) @ x @ _stretch(x.shape[-1], left, cut).T


def _stretch(side: int, start: float, cut: float) -> Float[Tensor, "s s"]:
    """The matrix that samples a row of pixels from `start`, but for the share `cut`."""
    at = ((torch.arange(side) + 0.5) * (1 - cut) + start * side - 0.5).clamp(0, side - 1)
    return (1 - (at[:, None] - torch.arange(side)[None]).abs()).clamp(min=0)


def _blur(side: int) -> Float[Tensor, "s s"]:
    """The matrix that averages WINDOW pixels of a row, its last pixel repeated beyond the border."""
    near = torch.arange(side)[:, None] + torch.arange(-(WINDOW // 2), WINDOW // 2 + 1)[None]
    return F.one_hot(near.clamp(0, side - 1), side).float().mean(1)
