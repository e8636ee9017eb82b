"""The ops of a policy: each samples its parameters from uniform random numbers, on the CPU, one row per image.

A renderer applies the parameters to pixels; `apply_op` in `reference.py` shows what they mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from stepclr.data.reading import RGB, channels_words
from stepclr.errors import StepclrError, check_range, choose
from stepclr.views.autoaugment import EQUALIZE, POSTERIZE, SOLARIZE, TABLES, auto_augment, rand_augment
from stepclr.views.color import ChannelJitter, ChannelJitterParams, jitter_factors
from stepclr.views.geometry import (
    EraseParams,
    QuarterTurns,
    RandomErasing,
    Rotate,
    RotateParams,
    TurnParams,
    VerticalFlip,
)
from stepclr.views.warp import thin_plate_weights

CONTROL_POINTS = np.array([[1, 1], [1, 2], [2, 1], [2, 2]]) / 3  # of the warp, in units of the view's side
MAX_SCALE = 23 / 224  # largest standard deviation of the control points' moves, in units of the view's side


@dataclass(frozen=True)
class JitterParams:
    """Color jitter of N views."""

    jitter: Bool[np.ndarray, " n"]  # whether the view is jittered at all
    factors: Float[np.ndarray, "n 4"]  # of brightness, contrast and saturation; then the shift of the hue, in turns
    order: Int[np.ndarray, "n 4"]  # which of these four comes first, second, ...


@dataclass(frozen=True)
class GrayscaleParams:
    """Which of N views become gray."""

    gray: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class BlurParams:
    """Gaussian blur of N views."""

    sigma: Float[np.ndarray, " n"]  # in pixels of the view; 0: no blur


@dataclass(frozen=True)
class WarpParams:
    """Sparse image warp of N views, in units of the view's side: `warp.thin_plate_field` is the displacement."""

    warp: Bool[np.ndarray, " n"]  # whether the view is warped at all
    knots: Float[np.ndarray, "n 4 2"]  # row, column
    weights: Float[np.ndarray, "n 7 2"]


@dataclass(frozen=True)
class TableParams:
    """Ops of AutoAugment or RandAugment on N views; the ops of a row are applied one after the other."""

    op: Int[np.ndarray, "n layers"]  # indices into `autoaugment.OPS`; 0: none
    magnitude: Float[np.ndarray, "n layers"]


@dataclass(frozen=True)
class LevelParams:
    """A change of the 256 levels of N views: solarize, posterize or equalize."""

    op: Int[np.ndarray, " n"]  # index into `autoaugment.OPS`; 0: none
    magnitude: Float[np.ndarray, " n"]  # as in TableParams


OpParams = (
    JitterParams
    | ChannelJitterParams
    | GrayscaleParams
    | BlurParams
    | WarpParams
    | TableParams
    | LevelParams
    | TurnParams
    | RotateParams
    | EraseParams
)


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    check_range(name, value, low, high)
    if not isinstance(value, int | np.integer):
        raise StepclrError(f"{name} must be a whole number, not {value}")


def take(params: OpParams, rows: slice) -> OpParams:
    """The parameters of these rows."""
    return replace(params, **{field.name: getattr(params, field.name)[rows] for field in fields(params)})


@dataclass(frozen=True)
class ColorJitter:
    """With probability p change brightness, contrast, saturation and hue, in random order (SimCLR App. A).

    Factors U(1 - 0.8s, 1 + 0.8s), not below 0; hue shift U(-0.2s, 0.2s) turns; s = strength.
    """

    strength: float = 1.0
    p: float = 0.8
    numbers: ClassVar[int] = 9  # random numbers for each view

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 2.5)
        check_range("p of ColorJitter", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 9"], _size: int) -> JitterParams:
        """Parameters from uniform random numbers: one for p, three factors, the hue, four for the order."""
        factors = jitter_factors(u[:, 1:4], self.strength)
        hue = (2 * u[:, 4:5] - 1) * 0.2 * self.strength
        return JitterParams(
            jitter=u[:, 0] < self.p,
            factors=np.concatenate([factors, hue], axis=1),
            order=np.argsort(u[:, 5:9], axis=1, kind="stable"),
        )


@dataclass(frozen=True)
class Grayscale:
    """With probability p make all three channels equal to the gray level."""

    p: float = 0.2
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("p of Grayscale", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 1"], _size: int) -> GrayscaleParams:
        """Parameters from uniform random numbers."""
        return GrayscaleParams(u[:, 0] < self.p)


@dataclass(frozen=True)
class Blur:
    """With probability p a Gaussian blur, sigma U(0.1, 2) pixels, with a kernel of S // 10 pixels, made odd."""

    p: float = 0.5
    numbers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("blur", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 2"], _size: int) -> BlurParams:
        """Parameters from uniform random numbers: one for p, one for sigma."""
        return BlurParams(np.where(u[:, 0] < self.p, 0.1 + 1.9 * u[:, 1], 0.0))


@dataclass(frozen=True)
class Warp:
    """With probability p a sparse image warp (SupCon 14.2): 2 x 2 control points at S/3 and 2S/3 move the view along.

    Each coordinate moves by N(0, 1) L pixels; L ~ U(0, 23 S / 224) is drawn once for each view. The displacement f is
    the thin-plate spline that has the moves as its values at the *moved* points; pixel q samples the view at q - f(q).
    """

    p: float = 0.5
    numbers: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_range("warp", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 10"], _size: int) -> WarpParams:
        """Parameters from uniform random numbers: one for p, one for L, eight for the moves."""
        warp = u[:, 0] < self.p
        normal = ndtri(np.maximum(u[:, 2:], 2.0**-53)).reshape(-1, 4, 2)  # the inverse at 0 is minus infinity
        moves = MAX_SCALE * u[:, 1, None, None] * normal
        weights = np.zeros((len(u), 7, 2))
        weights[warp] = thin_plate_weights((CONTROL_POINTS + moves)[warp], moves[warp])
        return WarpParams(warp, CONTROL_POINTS + moves, weights)


@dataclass(frozen=True)
class AutoAugment:
    """One of the 25 sub-policies of a table (Cubuk et al. 2019), as in torchvision: "imagenet", "cifar10" or "svhn".

    SupCon's code has another table for ImageNet (TensorFlow's v0), and fills with gray where this fills with black.
    """

    table: str = "imagenet"
    numbers: ClassVar[int] = 5

    def __post_init__(self) -> None:
        choose("autoaugment table", self.table, TABLES)

    def sample(self, u: Float[np.ndarray, "n 5"], size: int) -> TableParams:
        """Parameters from uniform random numbers: one for the sub-policy; for each of its ops, its p and its sign."""
        table = auto_augment(self.table, size)
        row = (u[:, 0] * len(table.op)).astype(np.int64)
        happens = u[:, 1::2] < table.p[row]
        negative = table.signed[row] & (u[:, 2::2] < 0.5)
        magnitude = np.where(negative, -table.magnitude[row], table.magnitude[row])
        return TableParams(np.where(happens, table.op[row], 0), np.where(happens, magnitude, 0.0))


@dataclass(frozen=True)
class RandAugment:
    """`layers` of 14 ops in turn, all at one magnitude of 0 to 30 (Cubuk et al. 2020), as in torchvision.

    SupCon's code has 16 ops: Invert, Cutout and SolarizeAdd, but not Identity. It fills with gray, not black.
    """

    layers: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        _check_whole("layers of RandAugment", self.layers, 1, 20)
        _check_whole("magnitude of RandAugment", self.magnitude, 0, 30)

    @property
    def numbers(self) -> int:
        """Random numbers for each view."""
        return 2 * self.layers

    def sample(self, u: Float[np.ndarray, "n k"], size: int) -> TableParams:
        """Parameters from uniform random numbers: for each layer, which op and which sign."""
        table = rand_augment(self.magnitude, size)
        row = (u[:, 0::2] * len(table.op)).astype(np.int64)
        negative = table.signed[row, 0] & (u[:, 1::2] < 0.5)
        magnitude = table.magnitude[row, 0]
        return TableParams(table.op[row, 0], np.where(negative, -magnitude, magnitude))


@dataclass(frozen=True)
class Solarize:
    """With probability p invert what is at least as bright as the threshold (BYOL: 0.2, in one of its two views)."""

    threshold: float = 0.5
    p: float = 0.2
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("threshold of Solarize", self.threshold, 0, 1)
        check_range("p of Solarize", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 1"], _size: int) -> LevelParams:
        """Parameters from uniform random numbers."""
        return _levels(u[:, 0] < self.p, SOLARIZE, self.threshold)


@dataclass(frozen=True)
class Posterize:
    """With probability p keep only the highest bits of each level, so that 2^bits levels are left."""

    bits: int = 4
    p: float = 0.2
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_whole("bits of Posterize", self.bits, 1, 8)
        check_range("p of Posterize", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 1"], _size: int) -> LevelParams:
        """Parameters from uniform random numbers."""
        return _levels(u[:, 0] < self.p, POSTERIZE, float(self.bits))


@dataclass(frozen=True)
class Equalize:
    """With probability p make all levels equally frequent, in each channel by itself, as in PIL."""

    p: float = 0.2
    numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("p of Equalize", self.p, 0, 1)

    def sample(self, u: Float[np.ndarray, "n 1"], _size: int) -> LevelParams:
        """Parameters from uniform random numbers."""
        return _levels(u[:, 0] < self.p, EQUALIZE, 0.0)


def _levels(happens: Bool[np.ndarray, " n"], op: int, magnitude: float) -> LevelParams:
    return LevelParams(np.where(happens, op, 0), np.where(happens, magnitude, 0.0))


Op = (
    ColorJitter
    | Grayscale
    | Blur
    | Warp
    | AutoAugment
    | RandAugment
    | Solarize
    | Posterize
    | Equalize
    | VerticalFlip
    | QuarterTurns
    | Rotate
    | RandomErasing
    | ChannelJitter
)


FOR_RGB = AutoAugment | RandAugment  # ops that images of other channels cannot have


def of_channels(ops: Sequence[Op], channels: int) -> tuple[Op, ...]:
    """The ops of a policy for images of this many channels: of others than RGB the colors are not changed.

    Color jitter becomes that of each channel, and grayscale is left out. Raises StepclrError for ops that need colors.
    """
    kept: list[Op] = []
    for op in ops:
        if isinstance(op, ChannelJitter):
            kept.append(replace(op, channels=channels))
        elif channels == RGB:
            kept.append(op)
        elif isinstance(op, FOR_RGB):
            needs = f"{type(op).__name__} is for RGB, not for {channels_words(channels)}"
            raise StepclrError(f"{needs}: choose the policy simclr")
        elif isinstance(op, ColorJitter):
            kept.append(ChannelJitter(channels, op.strength, op.p))
        elif not isinstance(op, Grayscale):
            kept.append(op)
    return tuple(kept)
