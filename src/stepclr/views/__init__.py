"""Step 2: a uint8 batch `[N, 3, H, W]` -> two random views of each image `[2, N, 3, S, S]` (section 3, App. A).

`views.py` is the step: `Views` samples the parameters of a batch's views, then renders them. `transform.py` is the same
for one image, in anyone's `Dataset`.

Sample: `keys.py` makes every random number a function of (seed, epoch, image, view); `ops.py` has the ops and what
each of them samples, and `geometry.py` has those that turn, rotate and erase, with their pixels; `policies.py` has the
ops of each policy; `sample.py` turns keys into the parameters of crop, flip and ops.

Render: `reference.py` turns parameters into pixels, on any device, with `color.py` (color jitter, and that of
images that are not RGB), `warp.py` (thin-plate spline) and `autoaugment.py` (tables and ops of AutoAugment and
RandAugment). `numba/` renders the same pixels to 1/255 many times as fast on a CPU, and `cuda.py` on a GPU.
"""

from stepclr.views.geometry import HorizontalFlip, QuarterTurns, RandomErasing, Rotate, VerticalFlip
from stepclr.views.ops import (
    AutoAugment,
    Blur,
    ColorJitter,
    Equalize,
    Grayscale,
    Op,
    Posterize,
    RandAugment,
    Solarize,
    Warp,
)

__all__ = [
    "AutoAugment",
    "Blur",
    "ColorJitter",
    "Equalize",
    "Grayscale",
    "HorizontalFlip",
    "Op",
    "Posterize",
    "QuarterTurns",
    "RandAugment",
    "RandomErasing",
    "Rotate",
    "Solarize",
    "VerticalFlip",
    "Warp",
]
