"""Color jitter and grey, each image with its own parameters. Rendered by the rules at the head of `render.py`."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepclr.views.ops import BRIGHTNESS, CONTRAST, HUE, SATURATION


def color_jitter(
    x: Float[Tensor, "n 3 s s"],
    jitter: Bool[np.ndarray, " n"],
    factors: Float[np.ndarray, "n 4"],
    order: Int[np.ndarray, "n 4"],
) -> None:
    """Brightness, contrast, saturation and hue, each image in its own order, clipped after each. In place."""
    for turn in range(4):
        for which, change in CHANGES.items():
            chosen = jitter & (order[:, turn] == which)
            rows = chosen_rows(chosen, x)
            if len(rows):
                factor = torch.from_numpy(factors[chosen, which]).to(x)[:, None, None, None]
                x[rows] = change(x[rows], factor)


def brightness(x: Float[Tensor, "n 3 s s"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """x times the factor (SimCLR v2's code; v1's adds)."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Float[Tensor, "n 3 s s"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Away from, or towards, the image's mean grey."""
    exact = (luma(x) * 2.0**16).round().sum((1, 2), dtype=torch.int64)
    mean = (exact.double() / (2.0**16 * x[0, 0].numel())).float()
    return _blend(x, mean[:, None, None, None], factor)


def saturation(x: Float[Tensor, "n 3 s s"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Away from, or towards, each pixel's own grey."""
    return _blend(x, luma(x).unsqueeze(1), factor)


def hue(x: Float[Tensor, "n 3 s s"], shift: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Turn each pixel's hue by `shift` turns, in HSV: value and saturation stay."""
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
    for offset in (5.0, 3.0, 1.0):  # HSV back to red, green, blue in one formula each
        k = sector + offset
        k = k - (k / 6).floor() * 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


CHANGES = {BRIGHTNESS: brightness, CONTRAST: contrast, SATURATION: saturation, HUE: hue}


def luma(x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n s s"]:
    """Grey, with ITU-R 601's weights (as torchvision has them)."""
    return x[:, 0] * 0.2989 + x[:, 1] * 0.587 + x[:, 2] * 0.114


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + other * (1 - factor)).clamp_(0, 1)


def chosen_rows(chosen: Bool[np.ndarray, " n"], x: Tensor) -> Int[Tensor, " k"]:
    """Places of those chosen, on the device of x."""
    return torch.from_numpy(chosen.nonzero()[0]).to(x.device)
