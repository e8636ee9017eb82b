"""Flips, turns, rotation and erasing: what each op samples, and its pixels, of any number of channels.

The pixels follow the rules at the head of `reference.py`; no shape depends on a parameter, as `cuda.py` needs it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from stepclr.errors import check_range
from stepclr.views.warp import bilinear

UPSIDE_DOWN = 4  # after the quarter turns 1, 2 and 3
SMALLEST_ERASED = 0.02  # share of the view's area
LEAST_ASPECT, MOST_ASPECT = 0.3, 3.3  # height / width of what is erased


@dataclass(frozen=True)
class TurnParams:
    """Vertical flip or quarter turns of N views."""

    turn: Int[np.ndarray, " n"]  # 0: none; 1 to 3: quarter turns, counterclockwise; UPSIDE_DOWN: vertical flip


@dataclass(frozen=True)
class RotateParams:
    """Rotation of N views about their centers, counterclockwise."""

    rotate: Bool[np.ndarray, " n"]  # whether the view is rotated at all
    direction: Float[np.ndarray, "n 2"]  # cosine and sine of the angle


@dataclass(frozen=True)
class EraseParams:
    """A rectangle of N views that becomes black."""

    erase: Bool[np.ndarray, " n"]  # whether the view has one at all
    box: Int[np.ndarray, "n 4"]  # top, left, height, width in pixels of the view


@dataclass(frozen=True)
class HorizontalFlip:
    """Sets the probability of exchanging left and right, which is 0.5 for a list of ops without it.

    The flip is part of the crop, wherever it stands in the list.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("p of HorizontalFlip", self.p, 0, 1)


@dataclass(frozen=True)
class VerticalFlip:
    """With probability p exchange top and bottom."""

    p: float = 0.5
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("p of VerticalFlip", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 1"], _size: int) -> TurnParams:
        """Parameters from uniform random numbers."""
        return TurnParams(np.where(u[:, 0] < self.p, UPSIDE_DOWN, 0))


@dataclass(frozen=True)
class QuarterTurns:
    """With probability p turn by 90, 180 or 270 degrees; at 0.75, all four orientations come equally often."""

    p: float = 0.75
    numbers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("p of QuarterTurns", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 2"], _size: int) -> TurnParams:
        """Parameters from uniform random numbers: one for p, one for how far."""
        return TurnParams(np.where(u[:, 0] < self.p, 1 + (3 * u[:, 1]).astype(np.int64), 0))


@dataclass(frozen=True)
class Rotate:
    """With probability p rotate about the center by U(-degrees, degrees), bilinearly, with mirrored edges."""

    degrees: float = 15.0
    p: float = 0.5
    numbers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("degrees of Rotate", self.degrees, 0, 180)
        check_range("p of Rotate", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 2"], _size: int) -> RotateParams:
        """Parameters from uniform random numbers: one for p, one for the angle."""
        angle = np.radians((2 * u[:, 1] - 1) * self.degrees)
        return RotateParams(u[:, 0] < self.p, np.stack([np.cos(angle), np.sin(angle)], axis=1))


@dataclass(frozen=True)
class RandomErasing:
    """With probability p make a rectangle black (Zhong et al. 2020): area U(0.02, max_area), aspect 0.3 to 3.3.

    The aspect is log-uniform, as in torchvision. Where a side would be longer than the view it is cut to it; the
    authors' code draws again.
    """

    max_area: float = 0.33
    p: float = 0.5
    numbers: ClassVar[int] = 5

    def __post_init__(self) -> None:
        check_range("max_area of RandomErasing", self.max_area, SMALLEST_ERASED, 1)
        check_range("p of RandomErasing", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 5"], size: int) -> EraseParams:
        """Parameters from uniform random numbers: one for p, then area, aspect, top and left."""
        area = (SMALLEST_ERASED + u[:, 1] * (self.max_area - SMALLEST_ERASED)) * size**2
        aspect = LEAST_ASPECT * (MOST_ASPECT / LEAST_ASPECT) ** u[:, 2]
        sides = np.sqrt(np.stack([area * aspect, area / aspect], axis=1))
        sides = np.clip(np.rint(sides), 1, size).astype(np.int64)
        corner = (u[:, 3:5] * (size - sides + 1)).astype(np.int64)
        return EraseParams(u[:, 0] < self.p, np.concatenate([corner, sides], axis=1))


def turned(x: Float[Tensor, "n c s s"], turn: int) -> Float[Tensor, "n c s s"]:
    """So many quarter turns counterclockwise; UPSIDE_DOWN exchanges top and bottom."""
    return x.flip(2) if turn == UPSIDE_DOWN else x.rot90(turn, (2, 3))


def rotated(x: Float[Tensor, "n c s s"], direction: Float[Tensor, "n 2"]) -> Float[Tensor, "n c s s"]:
    """Turned about the center, counterclockwise, by the angles of this cosine and sine; bilinear, mirrored edges."""
    last = x.shape[-1] - 1
    index = torch.arange(last + 1, dtype=torch.float64, device=x.device) - last / 2
    down, right = torch.cartesian_prod(index, index).unbind(1)
    cosine, sine = direction[:, :1], direction[:, 1:]
    place = torch.stack([right * sine + down * cosine, right * cosine - down * sine], dim=-1) + last / 2
    return bilinear(x, last - (last - place.abs()).abs())  # places lie less than a side outside: one mirror is enough


def erased(x: Float[Tensor, "n c s s"], erase: Bool[Tensor, " n"], box: Num[Tensor, "n 4"]) -> Float[Tensor, "n c s s"]:
    """Black in the box (top, left, height, width) of the chosen views."""
    index = torch.arange(x.shape[-1], device=x.device)
    top, left, height, width = box[:, :, None].unbind(1)
    rows = (index >= top) & (index < top + height) & erase[:, None]
    columns = (index >= left) & (index < left + width)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, x)
