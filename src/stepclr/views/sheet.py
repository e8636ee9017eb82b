"""A picture of some views: a row a picture, the original first, then the views of several epochs."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import make_grid

from stepclr.views.keys import view_keys
from stepclr.views.views import Views


def sheet(
    pictures: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    views: Views,
    seed: int = 0,
    pairs: int = 4,
) -> Image.Image:
    """One row a picture: the original (fitted into the view's square), then `pairs` times its V views."""
    originals = torch.stack([_fit(picture, views.size) for picture in pictures])
    drawn = [views(pictures, view_keys(seed, epoch, range(len(pictures)))) for epoch in range(pairs)]
    columns = torch.cat([originals[None], *drawn])  # [1 + pairs * V, N, 3, S, S]
    grid = make_grid(columns.transpose(0, 1).flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)
    image: Image.Image = tv.to_pil_image(grid)
    return image


def _fit(picture: Tensor, size: int) -> Tensor:
    height, width = (max(1, round(side * size / max(picture.shape[1:]))) for side in picture.shape[1:])
    small = tv.resize(picture, [height, width], antialias=True).float() / 255
    square = torch.ones(3, size, size)
    square[:, :height, :width] = small
    return square
