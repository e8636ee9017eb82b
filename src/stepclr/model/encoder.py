"""Step 3: the encoder f(.), timm's networks with a stem that fits the size of the view."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from stepclr.data.decode import upright_rgb
from stepclr.errors import StepclrError, choose

STEMS = ("auto", "imagenet", "small", "small-stride2", "own")
STRIP = 16  # short sides; of a longer image only the middle is enlarged, or a line of pixels would fill the memory
SMALL = 64  # up to this side a 7x7 stride-2 stem with a max-pool throws too much away: about 10 points on CIFAR
AnyImage = Image.Image | Tensor | NDArray[np.uint8]


class Encoder(nn.Module):
    """h = f(x): images `[n, 3, S, S]` in [0, 1] -> representation `[n, F]`, the last pooling (SimCLR section 2).

    It carries its own preprocessing: `mean`, `std` are buffers, `size` is S, and `preprocess` makes x from an image.
    Attributes: name, stem, size (pixels), num_features (F), classes (names of the run's classes, or empty),
    normalize_h (whether h has unit norm: SupCon normalizes before the head and before the linear layer too).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, name: str, stem: str, size: int, normalize_h: bool = False) -> None:
        super().__init__()
        self.body, self.name, self.stem, self.size, self.normalize_h = body, name, stem, size, normalize_h
        # Some have a layer between the pooling and the classifier; timm keeps it, and its width is another.
        self.num_features = int(getattr(body, "head_hidden_size", None) or body.num_features)  # type: ignore[arg-type]
        self.classes: list[str] = []
        self.register_buffer("mean", torch.zeros(3, 1, 1))  # the authors' code feeds [0, 1] as it is
        self.register_buffer("std", torch.ones(3, 1, 1))

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n features"]:
        h: Tensor = self.body((x - self.mean) / self.std)
        return F.normalize(h.float()).to(h.dtype) if self.normalize_h else h

    def preprocess(self, images: AnyImage | Sequence[AnyImage]) -> Float[Tensor, "n 3 s s"]:
        """Image(s) -> x `[n, 3, S, S]` in [0, 1], ready for the encoder: short side resized, center cropped.

        Takes PIL images, uint8 tensors `[3, H, W]` or `[n, 3, H, W]`, uint8 arrays `[H, W, 3]`, or a sequence of any.
        The crop is 0.875 of the resized image, as in ImageNet's test protocol; small views (S <= 64) take it whole.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return self._center(images)
        if isinstance(images, Image.Image | Tensor | np.ndarray):
            images = [images]
        if not images:
            raise StepclrError("there are no images to preprocess")
        return torch.cat([self._center(_chw(image)[None]) for image in images])

    @property
    def side(self) -> int:
        """The short side to which an image is resized before its center is cropped, pixels."""
        return self.size if self.size <= SMALL else round(self.size / 0.875)

    def _center(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise StepclrError(f"preprocess takes uint8 images [n, 3, H, W], not {images.dtype} {list(images.shape)}")
        x = images.to(self.mean.device).float() / 255
        side = self.side
        if x.shape[-2:] != (self.size, self.size) or side != self.size:
            short = min(x.shape[-2:])
            x = tv.center_crop(x, [min(length, STRIP * short) for length in x.shape[-2:]])
            height, width = (round(length * side / short) for length in x.shape[-2:])
            x = tv.resize(x, [height, width], tv.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
            x = tv.center_crop(x, [self.size, self.size])
        return x


def _chw(image: AnyImage) -> Tensor:
    if isinstance(image, Image.Image):
        return torch.as_tensor(upright_rgb(image))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0))) if isinstance(image, np.ndarray) else image


def build_encoder(
    name: str, stem: str = "auto", weights: str | Path | None = None, size: int = 224, normalize_h: bool = False
) -> Encoder:
    """An encoder of any timm name, its classifier removed.

    Args:
        name: "resnet18" ... "resnet200" or any other name timm knows; with "x2" or another whole number behind it, as
            "resnet50x2", a ResNet that many times as wide (SimCLR section 4, App. B: its features too).
        stem: for ResNets, "imagenet" (7x7, stride 2, max-pool), "small" (3x3, stride 1, no pool), "small-stride2"
            (3x3, stride 2, no pool), or "auto": small at S <= 64, else what timm builds ("imagenet", or "own" where
            that is another). Networks that are no ResNets keep their own.
        weights: None for a new initialization from torch's generator, "timm" for timm's own pretrained weights, or the
            path of a checkpoint file (.safetensors, .pt, .pth) or of a run. Strict, but a classifier is dropped.
        size: side S of the views, in pixels.
        normalize_h: divide h by its length (SupCon's recipes do).

    Raises StepclrError for an unknown name or stem, a stem on a network that is no ResNet, and weights that do not fit.
    """
    choose("stem", stem, STEMS)
    # The list with pretrained tags ("resnet18.a1_in1k") is long; the plain names are the nearest right thing.
    plain, width = _plain_name(name)
    if not timm.is_model(plain):
        choose("encoder", name, timm.list_models())
    options: dict[str, Any] = {"img_size": size} if timm.get_pretrained_cfg_value(plain, "fixed_input_size") else {}
    if width > 1:
        options["channels"] = tuple(width * channels for channels in (64, 128, 256, 512))
        if weights == "timm":
            raise StepclrError(f"timm has no weights for {name}; {plain} has some")
    try:
        body = timm.create_model(plain, pretrained=weights == "timm", num_classes=0, **options)
    except (OSError, RuntimeError, TypeError) as error:
        raise StepclrError(f"timm cannot build {name!r} with weights={weights!r}: {_first_line(error)}") from error
    stem = _set_stem(body, name, stem, size)
    if width > 1:
        _widen_stem(body, width)
    encoder = Encoder(body, name, stem, size, normalize_h)
    if weights == "timm":
        for key in ("mean", "std"):
            encoder.get_buffer(key).copy_(torch.tensor(timm.get_pretrained_cfg_value(name, key)).view(3, 1, 1))
    if weights not in (None, "timm"):
        load_weights(encoder, Path(str(weights)))
    return encoder


def checkpoint_activations(encoder: Encoder) -> None:
    """Keep few activations for the backward pass and compute the others again; StepclrError where timm has no way."""
    try:
        encoder.body.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError):
        raise StepclrError(f"--checkpoint-activations: timm has no such way for {encoder.name}") from None


def _plain_name(name: str) -> tuple[str, int]:
    """timm's name and how many times as wide: "resnet50x2" is ("resnet50", 2)."""
    wide = re.fullmatch(r"(resnet\d+)x([1-9])", name)
    return (wide[1], int(wide[2])) if wide else (name, 1)


def _widen_stem(body: nn.Module, width: int) -> None:
    """The stem of a wider ResNet is wider too (SimCLR's code); timm's option leaves it at 64 channels."""
    assert isinstance(body, ResNet)
    wide = 64 * width
    for name in ("conv1", "layer1.0.conv1", "layer1.0.downsample.0"):
        old = body.get_submodule(name)
        assert isinstance(old, nn.Conv2d)
        into, out = (3, wide) if name == "conv1" else (wide, old.out_channels)
        new = nn.Conv2d(into, out, old.kernel_size, old.stride, old.padding, bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        body.set_submodule(name, new)
    body.set_submodule("bn1", nn.BatchNorm2d(wide))


def _set_stem(body: nn.Module, name: str, stem: str, size: int) -> str:
    if not isinstance(body, ResNet):
        if stem not in ("auto", "own"):
            raise StepclrError(f"--stem {stem} is for ResNets; {name} keeps its own stem (--stem auto)")
        return "own"
    if stem == "auto" and size > SMALL:
        return "imagenet" if isinstance(body.conv1, nn.Conv2d) else "own"
    if stem == "own":
        return stem
    stem = "small" if stem == "auto" else stem
    side, stride = {"imagenet": (7, 2), "small": (3, 1), "small-stride2": (3, 2)}[stem]
    width = body.get_parameter("bn1.weight").numel()
    convolution = nn.Conv2d(3, width, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as timm starts its own
    body.set_submodule("conv1", convolution)
    body.set_submodule("maxpool", nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity())
    return stem


def load_weights(encoder: Encoder, path: Path) -> None:
    """Load a checkpoint file or a run's encoder into `encoder`, strictly: every name and shape must fit."""
    if path.is_dir():
        path = path / "encoder.safetensors"
    if not path.is_file():
        raise StepclrError(f"no weights at {path}")
    stem = encoder.stem
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            if "labels" in metadata:
                raise StepclrError(f"{path} is a classifier, not an encoder; name a run or its encoder")
            stem = json.loads(metadata.get("stem", "null")) or stem
        else:  # weights_only: a foreign file is data, never code
            with warnings.catch_warnings(action="ignore"):
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except StepclrError:
        raise
    except Exception as error:  # on a file that is no checkpoint, an unpickler can fail in any way
        raise StepclrError(f"{path} is not a checkpoint that can be read: {_first_line(error)}") from error
    if stem != encoder.stem:  # small and small-stride2 have the same shapes
        raise StepclrError(f"{path} has stem {stem}, and the encoder has stem {encoder.stem}; give --stem {stem}")
    own = encoder.state_dict()
    found = _unwrap(tensors, path)
    if not any(
        name.startswith("body.") for name in found
    ):  # a foreign network: no preprocessing of ours, its names are those of the body
        found = {
            f"body.{name}": value for name, value in found.items() if f"body.{name}" in own or not _is_classifier(name)
        }
        found |= {"mean": own["mean"], "std": own["std"]}
    wrong = [name for name in own if name in found and found[name].shape != own[name].shape]
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or extra or wrong:
        problems = [
            f"{len(names)} {what} (as {names[0]})"
            for what, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
            if names
        ]
        raise StepclrError(f"{path} does not fit {encoder.name} with stem {encoder.stem}: " + ", ".join(problems))
    encoder.load_state_dict(found)


def _unwrap(tensors: object, path: Path) -> dict[str, Tensor]:
    """The tensors under their plain names: out of "state_dict" or "model", and free of a common wrapper's prefix."""
    for key in ("state_dict", "model"):
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise StepclrError(f"{path} holds no plain dictionary of tensors")
    for prefix in ("module.", "encoder.", "backbone."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _is_classifier(name: str) -> bool:
    return name.split(".")[0] in ("fc", "classifier", "head")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
