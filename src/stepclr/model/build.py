"""Encoders by name: timm's networks with a stem that fits the size of the view; or a user's own module."""

import math
import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from stepclr.data.reading import RGB
from stepclr.errors import StepclrError, check_whole, choose, first_line
from stepclr.model.encoder import DOES_NOT_FIT, SMALL, Encoder, on_zeros
from stepclr.model.timm_weights import TIMM, create_pretrained, full_name, pretrained, timm_name
from stepclr.model.weights import check_finite, load_weights, set_mean_std, stored_network

STEMS = {"imagenet": (7, 2), "small": (3, 1), "small-stride2": (3, 2)}  # side and stride of the first convolution
OWN_MODULE = "module:"  # begins the name of an encoder whose architecture is a user's own module


def build_encoder(
    network: str | nn.Module,
    stem: str = "auto",
    weights: str | Path | None = None,
    size: int = 224,
    normalize_h: bool = False,
    num_features: int | None = None,
    mean_std: str | None = None,
    channels: int = RGB,
) -> Encoder:
    """An encoder of any timm name, its classifier removed, or of your own module.

    Args:
        network: "resnet10" ... "resnet200" or any other name that timm knows; "resnet50x2" or "resnet18x0.5" is a
            ResNet that many times as wide (SimCLR section 4, App. B; its features too), 0.1 to 0.99 or 1 to 9. Or an
            `nn.Module`: images `[n, C, S, S]` in [0, 1] -> representations `[n, F]`. It is used as it is, not copied.
        stem: for ResNets, "imagenet" (7x7, stride 2, max-pool), "small" (3x3, stride 1, no pool), "small-stride2"
            (3x3, stride 2, no pool), or "auto": small for S <= 64, else what timm builds ("imagenet", or "own" where
            that is another). With weights of timm or of a run, "auto" is theirs. Other networks keep their own.
        weights: None for a new initialization from torch's generator, "timm:NAME" for timm's pretrained weights
            ("timm" for those that timm prefers for this network), or the path of a run or of a checkpoint file
            (.safetensors, .pt, .pth) of any program: its backbone is found, its heads are left out, and `origin` of
            the encoder says so. Every tensor of the encoder must be there and fit.
        size: side S of the views, in pixels.
        normalize_h: divide h by its length (SupCon's recipes do).
        num_features: F of your own module, which is believed; by default it is measured on images of zeros.
        mean_std: what the encoder normalizes images in [0, 1] by: "imagenet", "none", or six numbers with commas, three
            of the mean and three of the standard deviation. By default those of the weights, where they are known.
        channels: C of the images, 3 for RGB, and of the mean and the standard deviation. timm fits the first layer of
            its weights to other images, and their mean over red, green and blue is that of each channel.

    Raises StepclrError for an unknown name or stem, a stem on a network other than a ResNet, weights that do not fit,
    a module that is not in float32, and, where F is measured, one whose output is not `[n, F]`.
    """
    choose("stem", stem, ("auto", *STEMS, "own"))
    check_whole("size", size, 1)
    check_whole("channels", channels, 1)
    if not isinstance(network, str | nn.Module):
        raise StepclrError(f"network must be a name or an nn.Module, not {network!r}")
    of_timm = timm_name(f"{TIMM}{network}" if weights == "timm" else weights)
    if isinstance(network, nn.Module):
        if of_timm is not None:
            raise StepclrError(f"timm has no weights for your own module {type(network).__name__}")
        encoder = _of_module(network, stem, size, normalize_h, num_features, channels)
    elif of_timm is not None:
        encoder = _with_timms_weights(network, stem, of_timm, size, normalize_h, channels)
    else:
        if weights is not None and stem == "auto":
            _, stem = stored_network(Path(weights)) or (network, stem)
        encoder = _of_timm(network, stem, size, normalize_h, channels)
    if weights is not None and of_timm is None:
        encoder.origin = load_weights(encoder, Path(weights))
    if mean_std is not None:
        set_mean_std(encoder, mean_std)
    return encoder


def off_the_shelf(name: str) -> Encoder:
    """timm's network with its pretrained weights and the preprocessing that they were made for, in eval mode."""
    cfg = pretrained(name)
    _, height, width = cfg.input_size
    if height != width or cfg.crop_mode == "border":
        shape = f"{height} x {width} px" if height != width else "a border around the image"
        raise StepclrError(f"timm:{name} takes {shape}; only square images without a border are supported")
    encoder = build_encoder(cfg.architecture, weights=f"{TIMM}{name}", size=width)
    encoder.side = math.floor(width / cfg.crop_pct)  # rounded as timm does
    encoder.interpolation, encoder.squash = cfg.interpolation, cfg.crop_mode == "squash"
    return encoder.eval()


def network_of(weights: str | None) -> str | None:
    """The network that initial weights are of, where they say so: those of timm, of a run or of an encoder file."""
    if weights is None:
        return None
    if (name := timm_name(weights)) is not None:
        return str(pretrained(name).architecture)
    stored = stored_network(Path(weights))
    return stored[0] if stored and not stored[0].startswith(OWN_MODULE) else None


def is_resnet(network: str) -> bool:
    """Whether the network of this name is a ResNet, which takes any of the STEMS and views of any size."""
    plain, _ = _plain_name(network)
    # timm builds its relatives (ResNeSt, SKNet, Res2Net) in other modules, but of the same class.
    return timm.is_model(plain) and timm.model_entrypoint(plain).__globals__.get("ResNet") is ResNet


def checkpoint_activations(encoder: Encoder) -> None:
    """Keep few activations for the backward pass and recompute the others. StepclrError where timm cannot do it."""
    try:
        encoder.body.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError):
        raise StepclrError(f"checkpoint_activations is not available for {encoder.name}") from None


def module_name(module: nn.Module) -> str:
    """The name of an encoder whose network is this module: "module:" and its class."""
    return OWN_MODULE + type(module).__name__


def _of_module(
    module: nn.Module, stem: str, size: int, normalize_h: bool, num_features: int | None, channels: int
) -> Encoder:
    name = type(module).__name__
    if stem not in ("auto", "own"):
        raise StepclrError(f"stem={stem} is for ResNets; your module {name} keeps its own stem (stem=auto)")
    floats = {tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point()}
    if floats - {torch.float32}:
        raise StepclrError(f"{name} has numbers in {', '.join(sorted(map(str, floats)))}; give it in torch.float32")
    if num_features is None:
        num_features = _measured_features(module, size, channels)
    return Encoder(module, module_name(module), "own", size, normalize_h, num_features, channels)


def _measured_features(module: nn.Module, size: int, channels: int) -> int:
    """F of a module, from images of zeros."""
    name, expected = type(module).__name__, f"images [2, {channels}, {size}, {size}] -> [2, features]"
    try:
        h = on_zeros(module, channels, size)
    except DOES_NOT_FIT as error:
        raise StepclrError(f"{name} must map {expected}, but it fails: {first_line(error)}") from error
    if not isinstance(h, torch.Tensor) or h.ndim != 2 or len(h) != 2:
        shape = list(h.shape) if isinstance(h, torch.Tensor) else type(h).__name__
        raise StepclrError(f"{name} must map {expected}, but it returns {shape}")
    return h.shape[1]


def _of_timm(name: str, stem: str, size: int, normalize_h: bool, channels: int) -> Encoder:
    """A network of timm, newly initialized."""
    # The list with pretrained tags ("resnet18.a1_in1k") is long; suggest the nearest plain name.
    plain, shape = _plain_name(name)
    if not timm.is_model(plain):
        choose("encoder", name, timm.list_models())
    try:
        body = timm.create_model(plain, num_classes=0, **_input_size(plain, size, channels), **shape)
    except (OSError, RuntimeError, TypeError) as error:
        raise StepclrError(f"timm cannot build {name!r}: {first_line(error)}") from error
    stem = _set_stem(body, name, stem, size, channels)
    if "channels" in shape:
        _scale_stem(body, shape["channels"][0], channels)
    return Encoder(body, name, stem, size, normalize_h, channels=channels)


def _with_timms_weights(network: str, stem: str, name: str, size: int, normalize_h: bool, channels: int) -> Encoder:
    """A network of timm with its pretrained weights, their stem, mean and std."""
    plain, shape = _plain_name(network)
    if shape:
        raise StepclrError(f"timm has no weights for {network}, only for {plain}")
    cfg = pretrained(name)
    if plain.partition(".")[0] != cfg.architecture:
        raise StepclrError(
            f"the weights timm:{name} are of the network {cfg.architecture}, not of {network}; leave out encoder"
        )
    body = create_pretrained(name, **_input_size(plain, size, channels))
    theirs = _own_stem(body)
    if stem not in ("auto", theirs):
        raise StepclrError(f"the weights timm:{name} have the stem {theirs}, not {stem}; leave out stem")
    encoder = Encoder(body, network, theirs, size, normalize_h, channels=channels)
    for buffer, of_rgb in ((encoder.mean, cfg.mean), (encoder.std, cfg.std)):
        known = torch.tensor(of_rgb)
        buffer.copy_((known if channels == RGB else known.mean().expand(channels)).view(-1, 1, 1))
    encoder.weights = f"{TIMM}{full_name(name)}"
    encoder.origin = f"{encoder.weights}, made for {cfg.input_size[-1]} px (license: {cfg.license or 'unknown'})"
    check_finite(encoder, Path(encoder.weights))
    return encoder


def _input_size(plain: str, size: int, channels: int) -> dict[str, Any]:
    """The options for a network that takes images of one size only, and for images that are not RGB."""
    options = {"img_size": size} if timm.get_pretrained_cfg_value(plain, "fixed_input_size") else {}
    return options if channels == RGB else options | {"in_chans": channels}


def _plain_name(name: str) -> tuple[str, dict[str, Any]]:
    """timm's name, and the options that make the network of it: "resnet50x2" is "resnet50" with twice the channels."""
    named = re.fullmatch(r"(resnet\d+)(?:x([1-9]|0\.[1-9]\d?))?", name)
    if named is None:
        return name, {}
    plain, width = named[1], float(named[2] or 1)
    shape: dict[str, Any] = {}
    if plain == "resnet10":  # timm's has another stem
        plain, shape["layers"] = "resnet18", (1, 1, 1, 1)
    if width != 1:
        shape["channels"] = tuple(round(width * channels) for channels in (64, 128, 256, 512))
    return plain, shape


def _scale_stem(body: nn.Module, wide: int, channels: int) -> None:
    """Make the stem of a ResNet as wide as its first stage, as SimCLR's code does; timm's option leaves it at 64."""
    assert isinstance(body, ResNet)
    block: Any = body.get_submodule("layer1.0")
    if block.downsample is None:  # a ResNet-50 of a quarter of the width: 64 channels in and out
        out = block.conv3.out_channels
        block.downsample = nn.Sequential(nn.Conv2d(out, out, 1, bias=False), nn.BatchNorm2d(out))
    for name in ("conv1", "layer1.0.conv1", "layer1.0.downsample.0"):
        old = body.get_submodule(name)
        assert isinstance(old, nn.Conv2d)
        into, out = (channels, wide) if name == "conv1" else (wide, old.out_channels)
        new = nn.Conv2d(into, out, old.kernel_size, old.stride, old.padding, bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        body.set_submodule(name, new)
    body.set_submodule("bn1", nn.BatchNorm2d(wide))


def _own_stem(body: nn.Module) -> str:
    """The stem that timm builds: "imagenet", or "own" where it is another, or the network is not a ResNet."""
    if not isinstance(body, ResNet) or not isinstance(body.conv1, nn.Conv2d):
        return "own"
    conv = body.conv1
    usual = (conv.kernel_size[0], conv.stride[0]) == STEMS["imagenet"] and isinstance(body.maxpool, nn.MaxPool2d)
    return "imagenet" if usual else "own"


def _set_stem(body: nn.Module, name: str, stem: str, size: int, channels: int) -> str:
    """Give a ResNet the stem, and say which one it now has."""
    if not isinstance(body, ResNet):
        if stem not in ("auto", "own"):
            raise StepclrError(f"stem={stem} is for ResNets; {name} keeps its own stem (stem=auto)")
        return "own"
    if stem == "auto" and size > SMALL:
        return _own_stem(body)
    if stem == "own":
        return stem
    if stem == "auto":
        stem = "small"
    side, stride = STEMS[stem]
    width = body.get_parameter("bn1.weight").numel()
    convolution = nn.Conv2d(channels, width, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as timm initializes its own
    body.set_submodule("conv1", convolution)
    body.set_submodule("maxpool", nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity())
    return stem
