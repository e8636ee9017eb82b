"""The ops of AutoAugment (Cubuk et al. 2019) and RandAugment (2020): their published tables, and what each op does.

Ops work on images of 256 levels, as torchvision defines them (v2, uint8). Images that undergo the same op are changed
together, each with its own magnitude.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
import torchvision
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from stepclr.errors import StepclrError
from stepclr.views.color import chosen_rows, luma

OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
)  # fmt: skip
RAND_AUGMENT_OPS = OPS[:14]  # all but Invert
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = MOVES = range(1, 6)
POSTERIZE, SOLARIZE, EQUALIZE = (OPS.index(name) for name in ("Posterize", "Solarize", "Equalize"))
TABLES = ("imagenet", "cifar10", "svhn")  # data sets for which sub-policies of AutoAugment were searched
LEVELS = {v2.AutoAugment: 10, v2.RandAugment: 31}  # steps of each scale of magnitudes


# The tables.


@dataclass(frozen=True)
class Table:
    """Ops with their probabilities and magnitudes; the ops of a row are applied one after the other."""

    op: Int[np.ndarray, "rows ops"]  # indices into OPS
    p: Float[np.ndarray, "rows ops"]
    magnitude: Float[np.ndarray, "rows ops"]  # in the op's own unit, such as pixels or degrees
    signed: Bool[np.ndarray, "rows ops"]  # whether the magnitude's sign is random


@cache
def auto_augment(table: str, size: int) -> Table:
    """The 25 sub-policies of two ops each that were found on this data set, for views of side `size`."""
    rows = _private(v2.AutoAugment(v2.AutoAugmentPolicy(table)), "_policies")
    return _table(v2.AutoAugment, rows, size)


@cache
def rand_augment(magnitude: int, size: int) -> Table:
    """The 14 ops at one magnitude of 0 to 30, for views of side `size`."""
    return _table(v2.RandAugment, [[(name, 1.0, magnitude)] for name in RAND_AUGMENT_OPS], size)


def _table(source: type[v2.AutoAugment] | type[v2.RandAugment], rows: list[Any], size: int) -> Table:
    """rows: of (name, probability, level of the magnitude) of each op in turn."""
    scales = _private(source, "_AUGMENTATION_SPACE")
    cells = []
    for name, p, level in chain.from_iterable(rows):
        scale_of, signed = scales[name]
        scale = scale_of(LEVELS[source], size, size)
        cells.append((OPS.index(name), p, 0.0 if scale is None else float(scale[level]), signed))
    return Table(*(np.array(column).reshape(len(rows), -1) for column in zip(*cells, strict=True)))


def _private(source: Any, name: str) -> Any:
    """torchvision's copy of a published table. It has no public name, and any release may move it."""
    if not hasattr(source, name):
        raise StepclrError(
            f"torchvision {torchvision.__version__} no longer has the tables of AutoAugment and RandAugment under the "
            f"name {name}; install torchvision 0.29 to use these policies"
        )
    return getattr(source, name)


# The ops.


def apply_table_op(x: UInt8[Tensor, "n c s s"], op: Int[np.ndarray, " n"], magnitude: Float[np.ndarray, " n"]) -> None:
    """Apply one op of OPS to each image, at its magnitude. In place."""
    moved = np.isin(op, MOVES)
    rows = chosen_rows(moved, x)
    if len(rows):
        matrix = torch.from_numpy(inverse_affine(op[moved], magnitude[moved], x.shape[-1]))
        x[rows] = move(x[rows], matrix.to(x.device))
    for name, function in LEVEL_OPS.items():
        chosen = op == OPS.index(name)
        rows = chosen_rows(chosen, x)
        if len(rows):
            x[rows] = function(x[rows], torch.from_numpy(magnitude[chosen]).to(x.device)[:, None, None, None])


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
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[op == ROTATE, :, :2] = rotation.transpose(2, 0, 1)
    return matrix


def move(x: UInt8[Tensor, "n 3 s s"], matrix: Float[Tensor, "n 2 3"]) -> UInt8[Tensor, "n 3 s s"]:
    """Each output pixel takes the nearest input pixel; black outside the image."""
    size = x.shape[-1]
    middle = (size - 1) / 2
    offsets = torch.arange(size, dtype=torch.float64, device=x.device) - middle
    along_x, along_y, constant = matrix[..., None, None].unbind(2)
    source = (along_x * offsets + along_y * offsets[:, None] + constant + middle).round()  # [n, 2, s, s]
    inside = ((source >= 0) & (source < size)).all(1, keepdim=True)
    column, row = source.clamp(0, size - 1).long().unbind(1)
    pixel = (row * size + column).flatten(1)[:, None].expand(-1, 3, -1)
    return x.flatten(2).gather(2, pixel).view_as(x) * inside


def posterize(x: UInt8[Tensor, "n c s s"], bits: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n c s s"]:
    """Keep the highest bits of each level."""
    return x & (256 - 2 ** (8 - bits.long())).to(torch.uint8)


def solarize(x: UInt8[Tensor, "n c s s"], share: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n c s s"]:
    """Invert the levels that are at least this share of 255."""
    return torch.where(x >= (share * 255).float(), 255 - x, x)


def brightness(x: UInt8[Tensor, "n 3 s s"], magnitude: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Blend with black."""
    return _blend(x, torch.zeros_like(x), magnitude)


def color(x: UInt8[Tensor, "n 3 s s"], magnitude: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Blend with each pixel's own gray level."""
    return _blend(x, _gray(x), magnitude)


def contrast(x: UInt8[Tensor, "n 3 s s"], magnitude: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Blend with the image's mean gray level."""
    total = _gray(x).sum((1, 2, 3), keepdim=True, dtype=torch.int64)  # of integers, so that it is exact
    return _blend(x, (total.double() / x[0, 0].numel()).float(), magnitude)


def sharpness(x: UInt8[Tensor, "n 3 s s"], magnitude: Float[Tensor, "n 1 1 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Blend with the mean of each pixel (5 times) and its 8 neighbors; the border stays."""
    levels = x.int()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    inner = levels[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    smooth = (total + 6).div(13, rounding_mode="floor")
    sharp = inner - (smooth - inner) * magnitude.float()
    x = x.clone()
    x[:, :, 1:-1, 1:-1] = sharp.clamp_(0, 255).to(torch.uint8)
    return x


LEVEL_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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


def _gray(x: Tensor) -> Tensor:
    return luma(x.float()).floor().unsqueeze(1)


def _blend(x: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """x (1 + magnitude) - other magnitude, truncated to whole levels as in torchvision."""
    return (x * (1 + magnitude).float() + other * (-magnitude).float()).clamp_(0, 255).to(torch.uint8)
