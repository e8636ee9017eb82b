"""`SimCLRTransform`: the views of one image at a time, for anyone's `Dataset` and `DataLoader`."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepclr.data.reading import RGB, Range, Reading
from stepclr.data.stores import as_image
from stepclr.views.numba.batch import compiled
from stepclr.views.policies import ListedOp
from stepclr.views.reference import Interpolation
from stepclr.views.views import Renderer, Views


class SimCLRTransform:
    """One image -> a list of V random views, float32 `[C, S, S]` in [0, 1], no mean or std (SimCLR section 3, App. A).

    A `transform` for any `Dataset`, in the main process or in workers of a `DataLoader`:

        >>> from torchvision.datasets import FakeData
        >>> from torch.utils.data import DataLoader
        >>> dataset = FakeData(8, (3, 40, 40), transform=SimCLRTransform(size=32))
        >>> (view_i, view_j), labels = next(iter(DataLoader(dataset, batch_size=4)))
        >>> view_i.shape
        torch.Size([4, 3, 32, 32])

    An image is a PIL image, a uint8 tensor `[C, H, W]` or a uint8 array `[H, W, C]`; RGB may be gray. Its views are
    those that `Views` makes of it for the same key. The key is drawn from torch's default generator, so that
    `torch.manual_seed` repeats the views, and each worker of a `DataLoader` draws its own.

    A later transform that takes one image would change the first view alone: normalize in the encoder instead
    (`build_encoder(..., mean_std=...)`).

    Args: those of `Views`, the size first; and `value_range`, (black, white) of PIL images of more than 8 bits.
    Raises StepclrError for settings that `Views` does not take, and for an image that is not one of the above.
    """

    def __init__(
        self,
        size: int = 224,
        policy: str | Sequence[ListedOp] = "simclr",
        strength: float | Sequence[float] | None = None,
        blur: float | None = None,
        min_area: float | None = None,
        views: int = 2,
        interpolation: Interpolation | None = None,
        warp: float | None = None,
        *,
        renderer: Renderer = "auto",
        value_range: Range | None = None,
        channels: int = RGB,
    ) -> None:
        self.views = Views(
            policy,
            size,
            strength,
            blur,
            min_area,
            views,
            interpolation=interpolation,
            warp=warp,
            renderer=renderer,
            channels=channels,
        )
        self.reading = Reading(value_range, channels=channels)
        if self.views.renderer == "numba":
            compiled()  # once, here, rather than in every worker at the same time

    def __call__(
        self, image: Image.Image | Tensor | NDArray[np.uint8], key: int | None = None
    ) -> list[Float[Tensor, "c s s"]]:
        """The V views of one image. key: any int64, as from `view_keys`; None: drawn from torch's generator."""
        if key is None:
            key = int(torch.randint(-(2**63), 2**63 - 1, ()))
        return list(self.views(as_image(image, self.reading)[None], [key])[:, 0])

    def __repr__(self) -> str:
        return f"SimCLRTransform({self.views.describe()})"
