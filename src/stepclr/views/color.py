"""Color jitter and grayscale, with parameters of its own for each image, by the rules at the head of `reference.py`.

Images that are not RGB have `ChannelJitter` instead: brightness and contrast of each channel by itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepclr.data.reading import RGB
from stepclr.errors import check_range

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of `JitterParams.factors`, and entries of its `order`
HALF = 2.0**26  # a uniform number of 53 bits is two of 26


def jitter_factors(u: Float[np.ndarray, "*n"], strength: float) -> Float[np.ndarray, "*n"]:
    """Uniform random numbers as factors U(1 - 0.8 strength, 1 + 0.8 strength), not below 0 (SimCLR App. A)."""
    spread = 0.8 * strength
    least = max(1 - spread, 0.0)
    return least + u * (1 + spread - least)


def color_jitter(
    x: Float[Tensor, "n 3 s s"],
    jitter: Bool[np.ndarray, " n"],
    factors: Float[np.ndarray, "n 4"],
    order: Int[np.ndarray, "n 4"],
) -> None:
    """Brightness, contrast, saturation and hue, each image in its own order, clipped after each. In place."""
    for turn in range(4):
        for which, adjust in ADJUSTMENTS.items():
            chosen = jitter & (order[:, turn] == which)
            rows = chosen_rows(chosen, x)
            if len(rows):
                factor = torch.from_numpy(factors[chosen, which]).to(x)[:, None, None, None]
                x[rows] = adjust(x[rows], factor)


def adjust_brightness(x: Float[Tensor, "n c s s"], factor: Float[Tensor, "n f 1 1"]) -> Float[Tensor, "n c s s"]:
    """Multiply by the factor, or by that of each channel (as SimCLR v2's code does; v1's adds)."""
    return (x * factor).clamp_(0, 1)


def adjust_contrast(x: Float[Tensor, "n 3 s s"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Blend with the image's mean gray level."""
    return blend(x, mean_level(luma(x))[:, None, None, None], factor)


def adjust_saturation(x: Float[Tensor, "n 3 s s"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Blend with each pixel's own gray level."""
    return blend(x, luma(x).unsqueeze(1), factor)


def adjust_hue(x: Float[Tensor, "n 3 s s"], shift: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Shift each pixel's hue in HSV by `shift` turns; value and saturation stay."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(  # hue in sixths of a turn, from the largest channel
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + shift[:, 0] * 6
    channels = []
    for offset in (5.0, 3.0, 1.0):  # HSV back to red, green and blue, by the same formula
        k = sector + offset
        k = k - (k / 6).floor() * 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


ADJUSTMENTS = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def luma(x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n s s"]:
    """The gray level of each pixel, by the weights of ITU-R 601 (as in torchvision)."""
    return x[:, 0] * 0.2989 + x[:, 1] * 0.587 + x[:, 2] * 0.114


def mean_level(x: Float[Tensor, "*n s s"]) -> Float[Tensor, "*n"]:
    """The mean of each view, or of each channel: of integers, whose sum is the same in every order of summation."""
    exact = (x * 2.0**16).round().sum((-2, -1), dtype=torch.int64)
    return (exact.double() / (2.0**16 * x.shape[-2] * x.shape[-1])).float()


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """The image times the factor, plus another image times 1 - factor, clipped to [0, 1]."""
    return (x * factor + other * (1 - factor)).clamp_(0, 1)


def chosen_rows(chosen: Bool[np.ndarray, " n"], x: Tensor) -> Int[Tensor, " k"]:
    """Indices of the chosen rows, on the device of x."""
    return torch.from_numpy(chosen.nonzero()[0]).to(x.device)


@dataclass(frozen=True)
class ChannelJitterParams:
    """Jitter of the channels of N views."""

    jitter: Bool[np.ndarray, " n"]  # whether the view is jittered at all
    contrast_first: Bool[np.ndarray, " n"]
    factors: Float[np.ndarray, "n c 2"]  # of brightness and contrast


@dataclass(frozen=True)
class ChannelJitter:
    """With probability p change brightness and contrast of each channel by itself, in random order.

    Factors U(1 - 0.8s, 1 + 0.8s), not below 0, as of `ColorJitter`; s = strength.
    """

    channels: int = RGB
    strength: float = 1.0
    p: float = 0.8

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 2.5)
        check_range("p of ChannelJitter", self.p, 0, 1)

    @property
    def numbers(self) -> int:
        """Random numbers for each view."""
        return 2 + self.channels

    def sample(self, u: Float[np.ndarray, "n k"], _size: int) -> ChannelJitterParams:
        """Parameters from uniform random numbers: one for p, one for the order, one for both factors of a channel."""
        brightness = np.floor(u[:, 2:] * HALF) / HALF
        contrast = u[:, 2:] * HALF % 1
        factors = jitter_factors(np.stack([brightness, contrast], axis=2), self.strength)
        return ChannelJitterParams(u[:, 0] < self.p, u[:, 1] < 0.5, factors)


def channel_jitter(x: Float[Tensor, "n c s s"], params: ChannelJitterParams) -> None:
    """Brightness and contrast of each channel, each image in its own order, clipped after each. In place."""
    for contrast_first in (False, True):
        chosen = params.jitter & (params.contrast_first == contrast_first)
        rows = chosen_rows(chosen, x)
        if not len(rows):
            continue
        brightness, contrast = torch.from_numpy(params.factors[chosen]).to(x)[..., None, None].unbind(2)
        if contrast_first:
            x[rows] = adjust_brightness(_adjust_contrast(x[rows], contrast), brightness)
        else:
            x[rows] = _adjust_contrast(adjust_brightness(x[rows], brightness), contrast)


def _adjust_contrast(x: Float[Tensor, "n c s s"], factor: Float[Tensor, "n c 1 1"]) -> Float[Tensor, "n c s s"]:
    """Blend each channel with its mean."""
    return blend(x, mean_level(x)[:, :, None, None], factor)
