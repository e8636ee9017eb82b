"""Which images show the same thing: re-compressed, resized, slightly cropped or brightened versions of each other.

Each image becomes a gray thumbnail of 32 x 32 pixels (`gray_thumbnail`), and that its detail: the difference of
each pixel from its surroundings, divided by their contrast, so that neither brightness nor borders nor sky make two
images alike.
Candidates are pairs whose coarse details, at 16 x 16, have a large cosine, found by blocked matrix products. Each pair
is then aligned in len(CROPS) ways and compared at full resolution. The time grows with the square of the number of
images. A mirrored or rotated image is a different image, and an image without detail matches no other.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stepclr.data.reading import RGB

Share = float | Float[Tensor, "m 1"]  # of a side of an image
GRAY_PX = 32  # side of a gray thumbnail
COARSE_PX = 16  # side of the coarse thumbnails that find candidates
WINDOW = 7  # pixels, the surroundings of a pixel
NOISE = 10.0  # gray levels: smaller differences are noise rather than detail
MIN_COSINE = 0.8  # details of one image are at least this similar (see benchmarks/duplicates.py)
COARSE_SLACK = 0.25  # coarse details, not yet aligned, may be less alike by this
# Where any two images resemble each other, as garments on black do, a pair must be more alike than MIN_COSINE: the
# cosine's TYPICAL_QUANTILE over all pairs, where it exceeds TYPICAL_COSINE, raises the threshold by RISE times that.
TYPICAL_QUANTILE, TYPICAL_COSINE, RISE, MAX_THRESHOLD = 0.95, 0.25, 0.45, 0.98
MIN_IMAGES = 15  # with fewer images the quantile says nothing
MAX_CANDIDATES = 8  # candidates per image; even a hundred versions of one image still end up in one group
BLOCK = 1000
PLACES = (0, 0.5, 1)  # of a crop along a side, as shares of what it cuts
CROPS = [(0.0, 0.0, 0.0)] + [(cut * y, cut * x, cut) for cut, y, x in product((0.025, 0.05), PLACES, PLACES)]


def gray_thumbnail(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "side side"]:
    """An image in gray, squeezed to GRAY_PX x GRAY_PX pixels: what duplicates are compared by."""
    return gray_thumbnails(image[None])[0]


def gray_thumbnails(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n side side"]:
    """`gray_thumbnail` of each image."""
    weights = torch.tensor([0.299, 0.587, 0.114]) if images.shape[1] == RGB else torch.tensor(1 / images.shape[1])
    gray = (images.float() * weights.view(-1, 1, 1)).sum(1, keepdim=True)
    small = F.interpolate(gray, (GRAY_PX, GRAY_PX), mode="bilinear", antialias=True)[:, 0]
    return small.round().clamp(0, 255).to(torch.uint8)


def near_pairs(
    images: UInt8[Tensor, "n side side"], others: UInt8[Tensor, "m side side"] | None = None
) -> tuple[Int64[np.ndarray, "pairs 2"], Float[np.ndarray, " pairs"]]:
    """Pairs (i, j) of gray thumbnails that show the same image, and the cosine of their details.

    Without `others`, both count in `images` and i < j; otherwise j counts in `others`. The cosine is at least
    MIN_COSINE for photographs, and higher where all images resemble each other (`threshold`).
    """
    queries = images.float()
    coarse = detail(F.adaptive_avg_pool2d(queries, COARSE_PX))
    bank, coarse_bank = queries, coarse
    if others is not None:
        bank = others.float()
        coarse_bank = detail(F.adaptive_avg_pool2d(bank, COARSE_PX))
    least = threshold(coarse_bank)
    pairs = candidates(coarse, coarse_bank, least - COARSE_SLACK, MAX_CANDIDATES, same=others is None)
    cosines = torch.cat([likeness(queries[part[:, 0]], bank[part[:, 1]]) for part in pairs.split(BLOCK)])
    near = cosines >= least
    return pairs[near].numpy(), cosines[near].numpy()


def candidates(
    queries: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], least: float, most: int, same: bool
) -> Int64[Tensor, "pairs 2"]:
    """Pairs (i, j) of rows of unit norm whose cosine is at least `least`; where there are many, the `most` per row.

    same: queries and bank are one set; then i < j. `metrics.nearest` has no threshold, and most rows have no
    candidate at all.
    """
    pairs = []
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
        pairs.append(torch.stack([row + start, column + first], 1))
    return torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The images that pairs connect, group by group, each in ascending order; the largest group first."""
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


def detail(gray: Float[Tensor, "n s s"]) -> Float[Tensor, "n pixels"]:
    """The difference of each pixel from its surroundings, divided by their contrast; rows of unit norm."""
    average = blur(gray.shape[-1], WINDOW)
    difference = gray - average @ gray @ average.T
    contrast = (average @ difference.square() @ average.T).clamp(min=0).sqrt()
    return F.normalize((difference / (contrast + NOISE)).flatten(1), dim=1)


def threshold(coarse: Float[Tensor, "n pixels"]) -> float:
    """The cosine from which two images count as one, given how alike any two of these images are."""
    typical = cosine_quantile(coarse, TYPICAL_QUANTILE)
    return min(MAX_THRESHOLD, MIN_COSINE + RISE * max(0.0, typical - TYPICAL_COSINE))


def cosine_quantile(coarse: Float[Tensor, "n pixels"], quantile: float) -> float:
    """The cosine that this share of all pairs of rows stays below; 0 with fewer than MIN_IMAGES rows."""
    some = coarse[:: 1 + len(coarse) // BLOCK]
    if len(some) < MIN_IMAGES:
        return 0.0
    row, column = torch.triu_indices(len(some), len(some), 1)
    return (some @ some.T)[row, column].kthvalue(round(quantile * len(row))).values.item()


def likeness(a: Float[Tensor, "n s s"], b: Float[Tensor, "n s s"]) -> Float[Tensor, " n"]:
    """The cosine of the details of each pair, after one image is aligned with the best-fitting crop of the other."""
    best = torch.full((len(a),), -1.0)
    for whole, part in ((a, b), (b, a)):
        # Choose the crop at low resolution, where all of them are cheap to try ...
        coarse, target = F.adaptive_avg_pool2d(whole, COARSE_PX), detail(F.adaptive_avg_pool2d(part, COARSE_PX))
        fits = torch.stack([(detail(_cropped(coarse, crop)) * target).sum(1) for crop in CROPS])
        chosen = fits.argmax(0)
        # ... and compare at full resolution, all pairs with the same crop at once.
        target = detail(part)
        for number in chosen.unique().tolist():
            rows = chosen == number
            cosine = (detail(_cropped(whole[rows], CROPS[number])) * target[rows]).sum(1)
            best[rows] = torch.maximum(best[rows], cosine)
    return best


def _cropped(x: Float[Tensor, "n s s"], crop: tuple[float, float, float]) -> Float[Tensor, "n s s"]:
    """Images cropped and resized back: `crop` is (top, left, share of each side that is cut), in shares of a side."""
    top, left, cut = crop
    return stretch(x.shape[-1], top, cut) @ x @ stretch(x.shape[-1], left, cut).T


def stretch(side: int, start: Share, cut: Share) -> Float[Tensor, "*m s s"]:
    """The matrix that resamples a row of pixels linearly: from the share `start` on, shortened by the share `cut`.

    Of m shares `[m, 1]`, it is m matrices.
    """
    place = ((torch.arange(side) + 0.5) * (1 - cut) + start * side - 0.5).clamp(0, side - 1)
    return (1 - (place[..., None] - torch.arange(side)).abs()).clamp(min=0)


def blur(side: int, window: int) -> Float[Tensor, "s s"]:
    """The matrix that averages `window` pixels of a row; the first and last pixel are repeated beyond the border."""
    near = torch.arange(side)[:, None] + torch.arange(-(window // 2), window // 2 + 1)[None]
    return F.one_hot(near.clamp(0, side - 1), side).float().mean(1)
