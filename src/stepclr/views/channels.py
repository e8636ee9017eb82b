"""Views of images that are not RGB: brightness and contrast of each channel by itself."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepclr.data.reading import RGB
from stepclr.errors import check_range
from stepclr.views.color import adjust_brightness, blend, chosen_rows, jitter_factors, mean_level

HALF = 2.0**26  # a uniform number of 53 bits is two of 26


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
