"""`Views`: sample the parameters of random views, then render them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stepclr.data.reading import RGB, channels_words
from stepclr.errors import StepclrError, check_range, check_whole, choose
from stepclr.splitmix import Indices
from stepclr.views.cuda import render_cuda
from stepclr.views.keys import NUMBERS
from stepclr.views.numba.batch import render_numba, why_not_numba
from stepclr.views.ops import Op, of_channels
from stepclr.views.policies import FLIP, ListedOp, read_policy
from stepclr.views.reference import Images, Interpolation, render_reference
from stepclr.views.sample import CROP_NUMBERS, ViewParams, sample_params

Renderer = Literal["auto", "numba", "torch"]

SIDES = (4, 4096)  # pixels: the smallest and the largest view


class Views:
    """t ~ T: random views of images, each a function of its key alone (SimCLR section 3, App. A).

    Args:
        policy: one of `POLICIES`, or ops that follow crop and flip: as words joined by "+", such as
            "simclr+VerticalFlip", or in a list, such as [ColorJitter(0.8), Grayscale()].
        size: side S of a view, in pixels.
        strength: s of the color jitter, or a sequence with one value for each view. None: by size, or the ops' own.
        blur: probability of the Gaussian blur. None: by size, or the op's own.
        min_area: smallest crop, as a share of the image's area. None: by size.
        views: number of views V of each image.
        interpolation: of the crop, "bicubic" or "bilinear", both antialiased. None: bilinear for simaugment, otherwise
            bicubic, as in SimCLR's code; SupCon's code is bilinear for every policy.
        warp: probability of the sparse image warp. None: 0.5, or the op's own.
        renderer: what renders images in CPU memory. "torch": the reference; "numba": several times as fast and within
            1/255 of it, for all ops but AutoAugment, RandAugment and ChannelJitter (posterize and equalize change a
            pixel by more where it lies between two levels); "auto": numba where possible. Images in GPU memory are
            rendered there.
        channels: C of the images. 3 is RGB. Otherwise brightness and contrast of each channel change by themselves, and
            neither saturation and hue nor grayscale; policies that change other colors are not available.

    Afterwards the attribute `renderer` is "numba" or "torch". With either of them a view is the same, bit for bit, in
    any batch, in any order, with any number of threads, and on any processor of the same kind. The attributes strength,
    blur and warp are None if the policy has no such op; it is an error to pass one of them then.
    Raises StepclrError for an unknown policy, a value out of range, a list of ops that needs too many random numbers,
    and a renderer that is requested but not available.
    """

    def __init__(
        self,
        policy: str | Sequence[ListedOp] = "simclr",
        size: int = 224,
        strength: float | Sequence[float] | None = None,
        blur: float | None = None,
        min_area: float | None = None,
        views: int = 2,
        interpolation: Interpolation | None = None,
        warp: float | None = None,
        *,
        renderer: Renderer = "auto",
        channels: int = RGB,
    ) -> None:
        check_range("size", size, *SIDES)
        check_range("views", views, 1, 64)
        for name, value in (("size", size), ("views", views), ("channels", channels)):
            check_whole(name, value, 1)
        default = read_policy(policy, size)
        self.policy, self.size, self.views, self.channels = default.name, size, views, channels
        self.interpolation = interpolation or default.interpolation
        choose("interpolation", self.interpolation, ("bicubic", "bilinear"))
        self.min_area = default.min_area if min_area is None else min_area
        check_range("min_area", self.min_area, 0, 1)
        self.flip = default.flip

        # The views differ in their strength alone, so that the others' values may be read off the first one.
        strengths = tuple(strength) if isinstance(strength, Sequence) else (strength,) * views
        if len(strengths) != views:
            raise StepclrError(f"strength has {len(strengths)} values for {views} views")
        tuned = [default.tuned({"strength": each, "blur": blur, "warp": warp}) for each in strengths]
        self.strength = default.value("strength") if strength is None else strength
        self.blur, self.warp = tuned[0].value("blur"), tuned[0].value("warp")
        self.ops = [of_channels(each.ops, channels) for each in tuned]  # of each view

        self.renderer = _choose_renderer(renderer, self.ops[0], channels)
        needed = CROP_NUMBERS + sum(op.numbers for op in self.ops[0])
        if needed > NUMBERS:
            raise StepclrError(f"crop, flip and these ops need {needed} random numbers for a view; there are {NUMBERS}")

    def __call__(self, batch: Images, keys: Indices) -> Float[Tensor, "v n c s s"]:
        """V views `[V, N, C, S, S]` of each image, float32 in [0, 1], no mean or std, on the batch's device.

        batch: uint8 `[N, C, H, W]`, or a list of `[C, H, W]` where sizes differ. keys: int64 `[N]` from `view_keys`.
        """
        params = self.sample_params(batch, keys)
        if not batch[0].is_cpu and self.channels == RGB:
            return render_cuda(batch, params, self.size, self.interpolation)
        if self.renderer == "numba":
            return render_numba(batch, params, self.size, self.interpolation)
        return torch.stack([render_reference(batch, view, self.size, self.interpolation) for view in params])

    def sample_params(self, batch: Tensor | Sequence[Tensor], keys: Indices) -> list[ViewParams]:
        """The parameters of each of the V views; a renderer turns them into pixels."""
        if not len(batch):
            raise StepclrError("there are no images to take views of")
        numbers: Int64[np.ndarray, " n"] = np.asarray(keys, dtype=np.int64).reshape(-1)
        if len(numbers) != len(batch):
            raise StepclrError(f"{len(batch)} images but {len(numbers)} keys")
        # The images of a tensor are alike: the first one stands for all.
        distinct = batch[:1] if isinstance(batch, Tensor) else batch
        for image in distinct:
            if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != self.channels or not image.numel():
                expected = f"uint8 images [{self.channels}, H, W]"
                raise StepclrError(f"views are taken of {expected}, not {image.dtype} {list(image.shape)}")
        sizes = np.array([image.shape[-2:] for image in distinct], dtype=np.int64)
        if isinstance(batch, Tensor):
            sizes = sizes.repeat(len(batch), axis=0)
        return [
            sample_params(numbers, view, sizes, self.min_area, self.flip, ops, self.size)
            for view, ops in enumerate(self.ops)
        ]

    def describe(self) -> str:
        """One line: policy, size and the values used, such as "simclr 96 px: strength 1, blur 0.5, min_area 0.08"."""
        values = []
        for name in ("strength", "blur", "warp", "min_area"):
            value = getattr(self, name)
            if value is not None:
                of_each_view = value if isinstance(value, Sequence) else [value]
                values.append(f"{name} {' / '.join(f'{number:g}' for number in of_each_view)}")
        if self.flip != FLIP:
            values.append(f"flip {self.flip:g}")
        return f"{self.policy} {self.size} px: {', '.join(values)}"


def _choose_renderer(wanted: Renderer, ops: Sequence[Op], channels: int) -> Literal["numba", "torch"]:
    """The renderer for these ops in CPU memory. StepclrError if numba is requested and cannot render them."""
    choose("renderer", wanted, ("auto", "numba", "torch"))
    if wanted == "torch":
        return "torch"
    reason = why_not_numba(ops) if channels == RGB else f"it renders RGB, not {channels_words(channels)}"
    if reason and wanted == "numba":
        raise StepclrError(f"renderer numba cannot render these views: {reason}; torch can")
    return "torch" if reason else "numba"
