"""The ops of a policy: each draws its parameters from random numbers, as arrays with a row an image. CPU only."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from stepclr.errors import StepclrError, choose
from stepclr.views.tables import TABLES, auto_augment, rand_augment
from stepclr.views.warp import thin_plate_weights

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
CONTROL = np.array([[1, 1], [1, 2], [2, 1], [2, 2]]) / 3  # of the warp, in units of the side
FARTHEST = 23 / 224  # largest scale of the control points' normal moves, in units of the side


@dataclass(frozen=True)
class JitterDraws:
    """Color jitter of N views."""

    jitter: Bool[np.ndarray, " n"]
    factors: Float[np.ndarray, "n 4"]  # brightness, contrast, saturation: factors; hue: shift in turns
    order: Int[np.ndarray, "n 4"]  # which of the four comes first, second, ...


@dataclass(frozen=True)
class GreyDraws:
    """Which of N views turn grey."""

    grey: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class BlurDraws:
    """Gaussian blur of N views."""

    sigma: Float[np.ndarray, " n"]  # in pixels of the view; 0: none


@dataclass(frozen=True)
class WarpDraws:
    """Sparse image warp of N views, in units of the side: `thin_plate_field` is the displacement."""

    warp: Bool[np.ndarray, " n"]
    knots: Float[np.ndarray, "n 4 2"]  # row, column
    weights: Float[np.ndarray, "n 7 2"]


@dataclass(frozen=True)
class TableDraws:
    """Ops of AutoAugment or RandAugment on N views, those of a row one after the other."""

    op: Int[np.ndarray, "n layers"]  # places in `tables.OPS`; 0: none
    magnitude: Float[np.ndarray, "n layers"]


Drawn = JitterDraws | GreyDraws | BlurDraws | WarpDraws | TableDraws


def take(drawn: Drawn, part: slice) -> Drawn:
    """The rows `part` of what was drawn."""
    return replace(drawn, **{field.name: getattr(drawn, field.name)[part] for field in fields(drawn)})


@dataclass(frozen=True)
class ColorJitter:
    """With probability p brightness, contrast, saturation and hue, in random order (SimCLR App. A).

    Factors U(1 - 0.8s, 1 + 0.8s), not below 0; hue shift U(-0.2s, 0.2s) turns; s = strength.
    """

    strength: float = 1.0
    p: float = 0.8
    numbers: ClassVar[int] = 9  # drawn for each view

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 2.5)
        check_range("jitter", self.p, 0, 1)

    def draw(self, u: Float[np.ndarray, "n 9"], _size: int) -> JitterDraws:
        """Parameters from uniform numbers."""
        spread = 0.8 * self.strength
        factors = np.maximum(1 - spread, 0) + u[:, 1:4] * (1 + spread - np.maximum(1 - spread, 0))
        hue = (2 * u[:, 4:5] - 1) * 0.2 * self.strength
        return JitterDraws(
            jitter=u[:, 0] < self.p,
            factors=np.concatenate([factors, hue], axis=1),
            order=np.argsort(u[:, 5:9], axis=1, kind="stable"),
        )


@dataclass(frozen=True)
class Grey:
    """With probability p grey in all three channels."""

    p: float = 0.2
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("grey", self.p, 0, 1)

    def draw(self, u: Float[np.ndarray, "n 1"], _size: int) -> GreyDraws:
        """Parameters from uniform numbers."""
        return GreyDraws(u[:, 0] < self.p)


@dataclass(frozen=True)
class Blur:
    """With probability p a Gaussian blur, sigma U(0.1, 2) pixels, kernel side S // 10 made odd."""

    p: float = 0.5
    numbers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("blur", self.p, 0, 1)

    def draw(self, u: Float[np.ndarray, "n 2"], _size: int) -> BlurDraws:
        """Parameters from uniform numbers."""
        return BlurDraws(np.where(u[:, 0] < self.p, 0.1 + 1.9 * u[:, 1], 0.0))


@dataclass(frozen=True)
class Warp:
    """With probability p a sparse image warp (SupCon 14.2): 2 x 2 control points at S/3 and 2S/3 move, and f with them.

    Each coordinate by N(0, 1) L, L ~ U(0, 23 S / 224) pixels once a view. f is the thin-plate spline that has the
    moves as its values at the *moved* points; pixel q samples the view at q - f(q).
    """

    p: float = 0.5
    numbers: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_range("warp", self.p, 0, 1)

    def draw(self, u: Float[np.ndarray, "n 10"], _size: int) -> WarpDraws:
        """Parameters from uniform numbers."""
        warp = u[:, 0] < self.p
        normal = ndtri(np.maximum(u[:, 2:], 2.0**-53)).reshape(-1, 4, 2)  # the inverse of 0 is minus infinity
        moves = FARTHEST * u[:, 1, None, None] * normal
        weights = np.zeros((len(u), 7, 2))
        weights[warp] = thin_plate_weights((CONTROL + moves)[warp], moves[warp])
        return WarpDraws(warp, CONTROL + moves, weights)


@dataclass(frozen=True)
class AutoAugment:
    """One of the 25 sub-policies of a table, "imagenet", "cifar10" or "svhn" (Cubuk et al. 2019), as in torchvision."""

    table: str = "imagenet"
    numbers: ClassVar[int] = 5

    def __post_init__(self) -> None:
        choose("autoaugment table", self.table, TABLES)

    def draw(self, u: Float[np.ndarray, "n 5"], size: int) -> TableDraws:
        """Parameters from uniform numbers: which sub-policy; for each of its ops, whether and which sign."""
        table = auto_augment(self.table, size)
        row = (u[:, 0] * len(table.op)).astype(np.int64)
        happens, negative = u[:, 1::2] < table.p[row], table.signed[row] & (u[:, 2::2] < 0.5)
        magnitude = np.where(negative, -table.magnitude[row], table.magnitude[row])
        return TableDraws(np.where(happens, table.op[row], 0), np.where(happens, magnitude, 0.0))


@dataclass(frozen=True)
class RandAugment:
    """So many of 14 ops one after the other, all at one magnitude of 0 .. 30 (Cubuk et al. 2020), as in torchvision."""

    layers: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        check_range("randaugment's number of layers", self.layers, 1, 20)
        check_range("randaugment's magnitude", self.magnitude, 0, 30)

    @property
    def numbers(self) -> int:
        """Random numbers drawn for each view."""
        return 2 * self.layers

    def draw(self, u: Float[np.ndarray, "n k"], size: int) -> TableDraws:
        """Parameters from uniform numbers: for each layer, which op and which sign."""
        table = rand_augment(self.magnitude, size)
        row = (u[:, 0::2] * len(table.op)).astype(np.int64)
        magnitude, negative = table.magnitude[row, 0], table.signed[row, 0] & (u[:, 1::2] < 0.5)
        return TableDraws(table.op[row, 0], np.where(negative, -magnitude, magnitude))


Op = ColorJitter | Grey | Blur | Warp | AutoAugment | RandAugment


def check_range(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Raise StepclrError unless low <= value <= high."""
    if not low <= value <= high:
        raise StepclrError(f"{name} must lie between {low} and {high}, not {value}")
