"""AutoAugment's and RandAugment's ops, on images of 256 grey levels, as torchvision defines them (v2, uint8).

Images that undergo the same op are changed together, each with its own magnitude.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stepclr.views.color import chosen_rows, luma
from stepclr.views.tables import OPS

SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = MOVES = tuple(
    OPS.index(name) for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
)


def change_levels(x: UInt8[Tensor, "n 3 s s"], op: Int[np.ndarray, " n"], magnitude: Float[np.ndarray, " n"]) -> None:
    """One op of `tables.OPS` on each image, at its magnitude. In place."""
    moved = np.isin(op, MOVES)
    rows = chosen_rows(moved, x)
    if len(rows):
        matrix = torch.from_numpy(inverse_affine(op[moved], magnitude[moved], x.shape[-1]))
        x[rows] = move(x[rows], matrix.to(x.device))
    for name, change in CHANGES.items():
        chosen = op == OPS.index(name)
        rows = chosen_rows(chosen, x)
        if len(rows):
            x[rows] = change(x[rows], torch.from_numpy(magnitude[chosen]).to(x.device)[:, None, None, None])


def inverse_affine(
    op: Int[np.ndarray, " n"], magnitude: Float[np.ndarray, " n"], size: int
) -> Float[np.ndarray, "n 2 3"]:
    """Where an output pixel comes from, (column, row) about the image's center; shears leave a corner in place."""
    matrix = np.tile(np.eye(2, 3), (len(op), 1, 1))
    for which, line in ((SHEAR_X, 0), (SHEAR_Y, 1)):
        matrix[op == which, line, 1 - line] = magnitude[op == which]
        matrix[op == which, line, 2] = magnitude[op == which] * size / 2
    for which, line in ((TRANSLATE_X, 0), (TRANSLATE_Y, 1)):
        matrix[op == which, line, 2] = -np.trunc(magnitude[op == which])
    angle = np.radians(magnitude[op == ROTATE])
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[op == ROTATE, :, :2] = turned.transpose(2, 0, 1)
    return matrix


def move(x: UInt8[Tensor, "n 3 s s"], matrix: Float[Tensor, "n 2 3"]) -> UInt8[Tensor, "n 3 s s"]:
    """Each output pixel is the nearest of where it comes from, black outside the image."""
    size = x.shape[-1]
    middle = (size - 1) / 2
    across = torch.arange(size, dtype=torch.float64, device=x.device) - middle
    along_x, along_y, constant = matrix[..., None, None].unbind(2)
    source = (along_x * across + along_y * across[:, None] + constant + middle).round()  # [n, 2, s, s]
    inside = ((source >= 0) & (source < size)).all(1, keepdim=True)
    column, row = source.clamp(0, size - 1).long().unbind(1)
    pixel = (row * size + column).flatten(1)[:, None].expand(-1, 3, -1)
    return x.flatten(2).gather(2, pixel).view_as(x) * inside


def posterize(x: UInt8[Tensor, "n 3 s s"], bits: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Keep the highest bits."""
    return x & (256 - 2 ** (8 - bits.long())).to(torch.uint8)


def solarize(x: UInt8[Tensor, "n 3 s s"], share: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Invert the levels from this share of 255 on."""
    return torch.where(x >= (share * 255).float(), 255 - x, x)


def brightness(x: UInt8[Tensor, "n 3 s s"], change: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Towards black, or away from it."""
    return _blend(x, torch.zeros_like(x), change)


def color(x: UInt8[Tensor, "n 3 s s"], change: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Towards each pixel's own grey, or away from it."""
    return _blend(x, _grey(x), change)


def contrast(x: UInt8[Tensor, "n 3 s s"], change: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Towards the image's mean grey, or away from it."""
    total = _grey(x).sum((1, 2, 3), keepdim=True, dtype=torch.int64)  # of integers, so that it is exact
    return _blend(x, (total.double() / x[0, 0].numel()).float(), change)


def sharpness(x: UInt8[Tensor, "n 3 s s"], change: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Towards the mean of a pixel (5 times) and its neighbors, or away from it; the border stays."""
    levels = x.int()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    inner = levels[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    smooth = (total + 6).div(13, rounding_mode="floor")
    sharp = inner - (smooth - inner) * change.float()
    x = x.clone()
    x[:, :, 1:-1, 1:-1] = sharp.clamp_(0, 255).to(torch.uint8)
    return x


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": lambda x, _: tv.autocontrast(x),
    "Equalize": lambda x, _: tv.equalize(x),
    "Invert": lambda x, _: tv.invert(x),
}


def _grey(x: Tensor) -> Tensor:
    grey: Tensor = luma(x.float()).floor()
    return grey.unsqueeze(1)


def _blend(x: Tensor, other: Tensor, change: Tensor) -> Tensor:
    """x (1 + change) - other change, cut off and not rounded, as torchvision does."""
    return (x * (1 + change).float() + other * (-change).float()).clamp_(0, 255).to(torch.uint8)
