"""An image of some views: a row an image, the original first, then its views."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import make_grid

from stepclr.views.keys import view_keys
from stepclr.views.views import Views

GAP = 2  # pixels between the cells
READABLE = 96  # pixels of a column that has a policy's name above it


def sheet(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    views: Views,
    seed: int = 0,
    pairs: int = 4,
) -> Image.Image:
    """One row an image: the original (fitted into the view's square), then `pairs` times its V views."""
    drawn = [views(images, view_keys(seed, epoch, range(len(images)))) for epoch in range(pairs)]
    return _grid(images, torch.cat(drawn))


def policy_sheet(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    policies: Sequence[Views],
    seed: int = 0,
) -> Image.Image:
    """One row an image: the original, then its first view under each policy; their names above.

    The policies' views have one size; those that are too small for the names are enlarged by a whole number.
    """
    keys = view_keys(seed, 0, range(len(images)))
    grid = _grid(images, torch.stack([views(images, keys)[0] for views in policies]))
    times = -(-READABLE // policies[0].size)
    grid = grid.resize((grid.width * times, grid.height * times), Image.Resampling.NEAREST)
    header = 16
    image = Image.new("RGB", (grid.width, grid.height + header), "white")
    image.paste(grid, (0, header))
    for column, name in enumerate(["original", *(views.policy for views in policies)]):
        left = (GAP + column * (policies[0].size + GAP)) * times
        ImageDraw.Draw(image).text((left, 2), name, fill="black")
    return image


def _grid(images: Tensor | Sequence[Tensor], views: Float[Tensor, "columns n 3 s s"]) -> Image.Image:
    originals = torch.stack([_fit(pixels, views.shape[-1]) for pixels in images])
    columns = torch.cat([originals[None], views]).transpose(0, 1)  # [N, 1 + columns, 3, S, S]
    image: Image.Image = tv.to_pil_image(
        make_grid(columns.flatten(0, 1), nrow=columns.shape[1], padding=GAP, pad_value=1.0)
    )
    return image


def _fit(image: Tensor, size: int) -> Tensor:
    height, width = (max(1, round(side * size / max(image.shape[1:]))) for side in image.shape[1:])
    small = tv.resize(image, [height, width], antialias=True).float() / 255
    square = torch.ones(3, size, size)
    square[:, :height, :width] = small
    return square
