"""Step 3: the encoder f(.), a network with its own preprocessing."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as tv

from stepclr.data.images import ImageSet
from stepclr.data.reading import RGB, Range, Reading, channels_words
from stepclr.data.stores import as_image
from stepclr.errors import StepclrError, first_line
from stepclr.views.reference import Interpolation

STRIP = 16  # short sides; only the middle of a longer image is enlarged, or a line of pixels would fill the memory
SMALL = 64  # up to this view size a stem that reduces the image fourfold leaves too little; SimCLR App. B.9 replaces it
AnyImage = Image.Image | Tensor | NDArray[np.uint8]


DOES_NOT_FIT = (RuntimeError, ValueError, TypeError, AssertionError)  # what networks raise for images of a wrong shape


def on_zeros(network: nn.Module, channels: int, size: int) -> object:
    """What a network makes of two images of zeros; BatchNorm's statistics and the modes of its layers stay as they are.

    Raises one of DOES_NOT_FIT where it does not take images of this size.
    """
    modes = [(layer, layer.training) for layer in network.modules()]
    tensor = next(iter(network.state_dict().values()), torch.empty(0))  # an encoder of pixels has buffers alone
    try:
        with torch.no_grad():
            return network.eval()(torch.zeros(2, channels, size, size, device=tensor.device))
    finally:
        for layer, training in modes:
            layer.training = training


class Encoder(nn.Module):
    """h = f(x): images `[n, C, S, S]` in [0, 1] -> representation `[n, F]`, the last pooling (SimCLR section 2).

    C is 3, RGB, unless `channels` says otherwise.

    It includes its preprocessing: `mean` and `std` are buffers, and `preprocess` makes x from an image. S is `size` in
    training, and `test_size` of whole images.

    Attributes:
        body: the network; it receives (x - mean) / std.
        name, stem: as in `build_encoder`; of a user's own module, "module:" and its class, and "own".
        size: side S of the views, in pixels.
        test_size: side S to which `preprocess` brings whole images, in pixels; that of the views, unless
            `represent_at` says otherwise.
        num_features: F.
        classes: the classes that were chosen for pretraining, or empty.
        value_range: the numbers that are black and white in images of more than 8 bits; None: what each file declares.
        side: the short side to which `preprocess` resizes an image before it crops the center, in pixels.
        interpolation: how it resizes, always antialiased.
        squash: whether it resizes both sides to `side`, whatever the image's shape.
        weights: "timm:NAME" where the weights are timm's, or were when training began; else empty.
        origin: what was loaded of another program's checkpoint, in words, or empty.
        normalize_h: whether h has unit norm; SupCon normalizes it before the head and before the linear layer.
        frozen_statistics: whether BatchNorm keeps its mean and variance in training too, and normalizes by them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        name: str,
        stem: str,
        size: int,
        normalize_h: bool = False,
        num_features: int | None = None,
        channels: int = RGB,
    ) -> None:
        super().__init__()
        self.body, self.name, self.stem, self.size, self.normalize_h = body, name, stem, size, normalize_h
        if num_features is None:
            # Some networks have a layer between the pooling and the classifier; timm keeps it, and its width differs.
            num_features = int(getattr(body, "head_hidden_size", None) or body.num_features)  # type: ignore[arg-type]
        self.num_features = num_features
        self.classes: list[str] = []
        self.test_size = size
        self.side = size if size <= SMALL else round(size / 0.875)
        self.interpolation: Interpolation = "bicubic"
        self.squash = False
        self.weights = self.origin = ""
        self.frozen_statistics = False
        self.value_range: Range | None = None
        self.register_buffer("mean", torch.zeros(channels, 1, 1))  # the authors' code feeds [0, 1] unchanged
        self.register_buffer("std", torch.ones(channels, 1, 1))

    @property
    def channels(self) -> int:
        """Channels C of the images that it takes."""
        return len(self.mean)

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode as torch does, except that with `frozen_statistics` BatchNorm stays in eval mode."""
        super().train(mode)
        if self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n features"]:
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self._check(x)
        h: Tensor = self.body((x - self.mean) / self.std)
        return F.normalize(h.float()).to(h.dtype) if self.normalize_h else h

    def _check(self, x: Tensor) -> None:
        """Raise StepclrError for bytes, and for images of other channels, which `mean` would be broadcast to."""
        if not x.is_floating_point():
            raise StepclrError(f"images must be numbers in [0, 1], not {x.dtype}; `preprocess` makes them of bytes")
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise StepclrError(f"images must be [n, {self.channels}, S, S], not {list(x.shape)}")

    def represent_at(self, test_size: int) -> "Encoder":
        """This encoder, whose `preprocess` from now on makes images of this side, with the same crop.

        An object is larger in a random crop that is resized to S than in the whole image: an encoder that learned from
        such crops may represent whole images better where they are larger than its views (FixRes, 1906.06423).
        Raises StepclrError where the network does not take images of that size.
        """
        try:
            on_zeros(self, self.channels, test_size)
        except DOES_NOT_FIT as error:
            raise StepclrError(
                f"{self.name} takes images of {self.size} px, but not of {test_size} px, which test_scale=1 avoids: "
                f"{first_line(error)}"
            ) from error
        self.side = round(self.side * test_size / self.test_size)
        self.test_size = test_size
        return self

    def preprocess(self, images: AnyImage | Sequence[AnyImage]) -> Float[Tensor, "n c s s"]:
        """Image(s) -> x `[n, C, S, S]` in [0, 1], ready for the encoder: short side resized, center cropped.

        Takes PIL images, uint8 tensors `[C, H, W]` or `[n, C, H, W]`, uint8 arrays `[H, W, C]`, for RGB each gray or
        not, or a sequence of these.
        The crop is 0.875 of the resized image, as in ImageNet's test protocol, or all of it for views of S <= 64; with
        off-the-shelf weights, as their authors crop.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return self._center(images)
        if isinstance(images, Image.Image | Tensor | np.ndarray):
            images = [images]
        if not images:
            raise StepclrError("there are no images to preprocess")
        reading = Reading(self.value_range, channels=self.channels)
        return torch.cat([self._center(as_image(image, reading)[None]) for image in images])

    def ranged(self, images: ImageSet) -> ImageSet:
        """The images, read with this encoder's channels, and with its value range if they were opened with none.

        One that they were opened with becomes the encoder's. Raises `StepclrError` for images of other channels.
        """
        if images.store.reading.channels not in (None, self.channels):
            raise StepclrError(
                f"{images.source} was opened with channels={images.channels}, but {self.name} takes images of "
                f"{channels_words(self.channels)}"
            )
        if images.channels != self.channels:
            images = images.read_as(Reading(channels=self.channels))
        if images.value_range is None:
            return images.read_as(Reading(self.value_range))
        self.value_range = images.value_range
        return images

    def preprocess_as(self, other: "Encoder") -> "Encoder":
        """This encoder, which from now on resizes, crops and normalizes as the other does, on its device."""
        self.to(other.mean.device)
        self.mean.copy_(other.mean)
        self.std.copy_(other.std)
        self.test_size, self.side = other.test_size, other.side
        self.interpolation, self.squash = other.interpolation, other.squash
        return self

    @property
    def resizing(self) -> str:
        """What `preprocess` does to the size of an image, in words."""
        what = "both sides" if self.squash else "short side"
        resized = f"{what} to {self.side} px ({self.interpolation}, antialiased)"
        return f"{resized}, central crop of {self.test_size} x {self.test_size} px"

    def _center(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            taken = f"uint8 images [n, {self.channels}, H, W]"
            raise StepclrError(f"preprocess takes {taken}, not {images.dtype} {list(images.shape)}")
        x = images.to(self.mean.device).float().div_(255)
        size, side = self.test_size, self.side
        if x.shape[-2:] != (size, size) or side != size:
            short = min(x.shape[-2:])
            x = tv.center_crop(x, [min(length, STRIP * short) for length in x.shape[-2:]])
            shape = [side, side]
            if not self.squash:
                shape = [round(length * side / short) for length in x.shape[-2:]]
            x = tv.resize(x, shape, tv.InterpolationMode(self.interpolation), antialias=True).clamp(0, 1)
            x = tv.center_crop(x, [size, size])
        return x
