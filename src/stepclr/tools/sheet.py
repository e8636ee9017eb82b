"""A sheet of views: one row per image, the original first, then its views; `shown` says what of many channels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stepclr.tools.images import INK, grid, shown, stacked
from stepclr.views.keys import view_keys
from stepclr.views.reference import Images
from stepclr.views.views import Views

GAP = 2  # px between the cells
READABLE_PX = 96  # width of a column that has a policy's name above it
HEADER_PX = 16  # height of the line of names


def sheet(images: Images, views: Views, seed: int = 0, pairs: int = 4) -> Image.Image:
    """One row per image: the original (fitted into the views' square), then `pairs` times its V views."""
    columns = [views(images, view_keys(seed, epoch, range(len(images)))) for epoch in range(pairs)]
    image, _ = _grid(images, torch.cat(columns))
    return image


def policy_sheet(images: Images, policies: Sequence[Views], seed: int = 0) -> Image.Image:
    """One row per image: the original, then its first view under each policy, with the names of the policies above.

    The views of all policies have one size. Views too small for the names are enlarged by a whole number.
    """
    keys = view_keys(seed, 0, range(len(images)))
    views_grid, corners = _grid(images, torch.stack([views(images, keys)[0] for views in policies]))
    scale = -(-READABLE_PX // policies[0].size)
    views_grid = views_grid.resize((views_grid.width * scale, views_grid.height * scale), Image.Resampling.NEAREST)
    header = Image.new("RGB", (views_grid.width, HEADER_PX), "white")
    draw = ImageDraw.Draw(header)
    for name, (left, _) in zip(["original", *(views.policy for views in policies)], corners, strict=False):
        draw.text((left * scale, 2), name, fill=INK)
    return stacked([header, views_grid])


def _grid(
    images: Tensor | Sequence[Tensor], columns: Float[Tensor, "columns n c s s"]
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """One row per image: the original, fitted into the views' square, then its views."""
    cells = []
    for index, image in enumerate(images):
        original = _fit(image, columns.shape[-1])
        cells += [tv.to_pil_image(shown(pixels)) for pixels in (original, *columns[:, index])]
    return grid(cells, 1 + len(columns), columns.shape[-1], GAP)


def _fit(image: UInt8[Tensor, "c h w"], size: int) -> Float[Tensor, "c s s"]:
    """The whole image in the top left corner of a white square of side S."""
    height, width = (max(1, round(side * size / max(image.shape[1:]))) for side in image.shape[1:])
    small = tv.resize(image, [height, width], antialias=True).float() / 255
    square = torch.ones(len(image), size, size)
    square[:, :height, :width] = small
    return square
