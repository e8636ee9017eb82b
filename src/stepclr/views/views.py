"""`Views`: draw, then render."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stepclr.errors import StepclrError, choose
from stepclr.splitmix import Indices
from stepclr.views.cuda import render_batched
from stepclr.views.keys import NUMBERS
from stepclr.views.numba.batch import Renderer, choose_renderer, render_fused
from stepclr.views.ops import Blur, ColorJitter, Op, Warp, check_range
from stepclr.views.policies import POLICIES, policy_defaults, policy_name, policy_ops, size_defaults
from stepclr.views.reference import Interpolation, render
from stepclr.views.sample import CROP_NUMBERS, Draws, draw


class Views:
    """t ~ T: random views of images, each a function of its key alone (SimCLR section 3, App. A).

    Args:
        policy: one of `POLICIES`, or a list of ops that follow crop and flip, as [ColorJitter(0.8), Grey()].
        size: side S of a view, in pixels.
        strength: s of the color jitter, or a sequence with one for each view. None: by size, or the ops' own.
        blur: probability of the Gaussian blur. None: by size, or the op's own.
        min_area: smallest crop as a share of the image's area. None: by size.
        views: number of views V of each image.
        interpolation: of the crop, "bicubic" or "bilinear"; antialiased both. None: as in the authors' code,
            bilinear in simaugment, else bicubic.
        warp: probability of the sparse image warp. None: 0.5, or the op's own.
        renderer: "torch", the reference; "numba", several times as fast on a CPU and within 1/255 of it, for policies
            of color jitter, grey, warp and blur; "auto": numba where it can be. A batch on a GPU is rendered there.

    `renderer` is the decision afterwards, "numba" or "torch"; with one of them a view is bit for bit the same in any
    batch, order and number of threads, and on any processor of the same kind.
    strength, blur and warp are None afterwards where the policy has no such op; to give one then is an error.
    Raises StepclrError for an unknown policy, a value out of range, a list that wants too many random numbers, or a
    renderer that was asked for and cannot be had.
    """

    def __init__(
        self,
        policy: str | Sequence[Op] = "simclr",
        size: int = 224,
        strength: float | Sequence[float] | None = None,
        blur: float | None = None,
        min_area: float | None = None,
        views: int = 2,
        interpolation: Interpolation | None = None,
        warp: float | None = None,
        *,
        renderer: Renderer = "auto",
    ) -> None:
        check_range("size", size, 4, 4096)
        check_range("views", views, 1, 64)
        ops, defaults = policy_ops(policy, size), policy_defaults(policy, size)
        self.policy = policy_name(policy)
        self.size, self.views = size, views
        self.interpolation: Interpolation = interpolation or ("bilinear" if policy == "simaugment" else "bicubic")
        choose("interpolation", self.interpolation, ("bicubic", "bilinear"))
        for name, value in (("strength", strength), ("blur", blur), ("warp", warp)):
            if value is not None and defaults[name] is None:
                users = ", ".join(other for other in POLICIES if policy_defaults(other, size)[name] is not None)
                raise StepclrError(f"policy {self.policy} has no use for {name}; these have: {users}")
        each = tuple(strength) if isinstance(strength, Sequence) else (strength,) * views
        if len(each) != views:
            raise StepclrError(f"strength has {len(each)} values for {views} views")
        self.strength = defaults["strength"] if strength is None else strength
        self.blur = defaults["blur"] if blur is None else blur
        self.warp = defaults["warp"] if warp is None else warp
        self.min_area = size_defaults(size)["min_area"] if min_area is None else min_area
        check_range("min_area", self.min_area, 0, 1)
        self.ops = [tuple(_tuned(op, own, blur, warp) for op in ops) for own in each]  # of each view
        self.renderer = choose_renderer(renderer, ops)
        wanted = CROP_NUMBERS + sum(op.numbers for op in ops)
        if wanted > NUMBERS:
            raise StepclrError(f"crop, flip and these ops want {wanted} random numbers a view, and it has {NUMBERS}")

    def __call__(
        self, batch: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]], keys: Indices
    ) -> Float[Tensor, "v n 3 s s"]:
        """V views `[V, N, 3, S, S]`, float32 in [0, 1], no mean or std, on the batch's device.

        batch: uint8 `[N, 3, H, W]`, or a list of `[3, H, W]` where sizes differ. keys: int64 `[N]` from `view_keys`.
        """
        draws = self.draw(batch, keys)
        if batch[0].device.type == "cuda":
            return render_batched(batch, draws, self.size, self.interpolation)
        if self.renderer == "numba":
            return render_fused(batch, draws, self.size, self.interpolation)
        return torch.stack([render(batch, drawn, self.size, self.interpolation) for drawn in draws])

    def draw(self, batch: Tensor | Sequence[Tensor], keys: Indices) -> list[Draws]:
        """The parameters of each of the V views; `render` turns them into pixels."""
        if not len(batch):
            raise StepclrError("there are no images to take views of")
        numbers: Int64[np.ndarray, " n"] = np.asarray(keys, dtype=np.int64).reshape(-1)
        if len(numbers) != len(batch):
            raise StepclrError(f"{len(batch)} images but {len(numbers)} keys")
        equal = isinstance(batch, Tensor)
        for image in batch[:1] if equal else batch:
            if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3 or not image.numel():
                raise StepclrError(f"views are taken of uint8 images [3, H, W], not {image.dtype} {list(image.shape)}")
        sizes = np.array([image.shape[-2:] for image in (batch[:1] if equal else batch)], dtype=np.int64)
        if equal:
            sizes = sizes.repeat(len(batch), axis=0)
        return [draw(numbers, view, sizes, self.min_area, ops, self.size) for view, ops in enumerate(self.ops)]

    def describe(self) -> str:
        """One line: policy, size and the values used, as "simclr 96 px: strength 1, blur 0.5, min_area 0.08"."""
        values = []
        for name in ("strength", "blur", "warp", "min_area"):
            value = getattr(self, name)
            if value is not None:
                each = value if isinstance(value, Sequence) else [value]
                values.append(f"{name} {' / '.join(f'{number:g}' for number in each)}")
        return f"{self.policy} {self.size} px: {', '.join(values)}"


def _tuned(op: Op, strength: float | None, blur: float | None, warp: float | None) -> Op:
    match op:
        case ColorJitter() if strength is not None:
            return replace(op, strength=strength)
        case Blur() if blur is not None:
            return replace(op, p=blur)
        case Warp() if warp is not None:
            return replace(op, p=warp)
    return op
