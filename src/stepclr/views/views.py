"""`Views`: draw, then render."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stepclr.errors import StepclrError, choose
from stepclr.views.draw import Draws, draw
from stepclr.views.keys import Indices
from stepclr.views.render import Interpolation, render

POLICIES = {
    "simclr": "crop and resize, flip, colour jitter, grey, blur (SimCLR App. A)",
    "crop": "crop and resize, flip (what supervised training and linear evaluation use)",
}


def size_defaults(size: int) -> dict[str, float]:
    """SimCLR's strength, blur and min_area by view size S: CIFAR's settings up to 32 pixels, ImageNet's above."""
    if size <= 32:
        return {"strength": 0.5, "blur": 0.0, "min_area": 0.2}
    return {"strength": 1.0, "blur": 0.5, "min_area": 0.08}


class Views:
    """t ~ T: random views of pictures, each a function of its key alone (SimCLR section 3, App. A).

    Args:
        policy: "simclr" or "crop".
        size: side S of a view, in pixels.
        strength: s of the colour jitter; factors U(1 - 0.8s, 1 + 0.8s), hue shift U(-0.2s, 0.2s) turns. None: by size.
        blur: probability of the Gaussian blur. None: by size.
        min_area: smallest crop as a share of the picture's area. None: by size.
        views: number of views V of each picture.
        interpolation: of the crop, "bicubic" (as in the authors' code) or "bilinear"; antialiased both.

    Raises StepclrError for an unknown policy or a value out of range.
    """

    def __init__(
        self,
        policy: str = "simclr",
        size: int = 224,
        strength: float | None = None,
        blur: float | None = None,
        min_area: float | None = None,
        views: int = 2,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.policy = choose("policy", policy, POLICIES)
        self.size, self.views, self.interpolation = size, views, interpolation
        choose("interpolation", interpolation, ("bicubic", "bilinear"))
        by_size = size_defaults(size)
        self.strength = by_size["strength"] if strength is None else strength
        self.blur = by_size["blur"] if blur is None else blur
        self.min_area = by_size["min_area"] if min_area is None else min_area
        for name, value, low, high in (
            ("size", size, 4, 4096),
            ("views", views, 1, 64),
            ("strength", self.strength, 0, 2.5),
            ("blur", self.blur, 0, 1),
            ("min_area", self.min_area, 0, 1),
        ):
            if not low <= value <= high:
                raise StepclrError(f"{name} must lie between {low} and {high}, not {value}")

    def __call__(
        self, batch: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]], keys: Indices
    ) -> Float[Tensor, "v n 3 s s"]:
        """V views `[V, N, 3, S, S]`, float32 in [0, 1], no mean or std, on the batch's device.

        batch: uint8 `[N, 3, H, W]`, or a list of `[3, H, W]` where sizes differ. keys: int64 `[N]` from `view_keys`.
        """
        return torch.stack([render(batch, draws, self.size, self.interpolation) for draws in self.draw(batch, keys)])

    def draw(self, batch: Tensor | Sequence[Tensor], keys: Indices) -> list[Draws]:
        """The parameters of each of the V views; `render` turns them into pixels."""
        if not len(batch):
            raise StepclrError("there are no pictures to take views of")
        numbers: Int64[np.ndarray, " n"] = np.asarray(keys, dtype=np.int64).reshape(-1)
        if len(numbers) != len(batch):
            raise StepclrError(f"{len(batch)} pictures but {len(numbers)} keys")
        for picture in batch[:1] if isinstance(batch, Tensor) else batch:
            if picture.dtype != torch.uint8 or picture.ndim != 3 or len(picture) != 3 or not picture.numel():
                raise StepclrError(
                    f"views are taken of uint8 pictures [3, H, W], not {picture.dtype} {list(picture.shape)}"
                )
        sizes = np.array([picture.shape[-2:] for picture in batch], dtype=np.int64)
        colour = self.policy != "crop"
        return [
            draw(numbers, view, sizes, colour, self.strength, self.blur, self.min_area) for view in range(self.views)
        ]
