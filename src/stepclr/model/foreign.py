"""Checkpoints of other programs: where the backbone is, and by which mean and std its images were normalized."""

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from stepclr.data.reading import RGB
from stepclr.errors import StepclrError, check_number

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")  # DataParallel, torch.compile, FSDP: at any depth
CONTAINERS = ("state_dict", "model", "model_state_dict")  # keys under which a file has its tensors
TRAINING = ("optimizer", "optimizers", "optimizer_states", "scaler", "lr_schedulers")  # keys of what else is in a file
# Names of the network to leave where two fit: the moving average of one that learned by gradients, such as MoCo's
# encoder_k. In DINO the moving average, the teacher, is the better one, so that its student is left.
SECOND = {"momentum", "k", "target", "ema", "student"}
HEADS = re.compile(
    r"fc\d*$|linear$|queue|(head|proj|pred|classif|prototype|momentum|online|contrast|mlp_head|criterion)"
)

IMAGENET = "0.485,0.456,0.406,0.229,0.224,0.225"
CIFAR10 = "0.4914,0.4822,0.4465,0.2023,0.1994,0.2010"
CIFAR100 = "0.5071,0.4867,0.4408,0.2675,0.2565,0.2761"
SUPCONTRAST = {"cifar10": CIFAR10, "cifar100": CIFAR100}  # by the data set that its options name
SOLO_LEARN = {
    "cifar10": "0.4914,0.4822,0.4465,0.247,0.243,0.261",
    "stl10": "0.4914,0.4823,0.4466,0.247,0.243,0.261",
    "imagenet": IMAGENET,
    "imagenet100": IMAGENET,
}
NAMED = {"imagenet": IMAGENET, "none": "0,0,0,1,1,1"}


@dataclass(frozen=True)
class Backbone:
    """The tensors of a network in a checkpoint, under the network's own names, and what is said of it.

    `sender` is the program that wrote it, "" if it is not known; `mean_std` is as in `parse_mean_std`, None if unknown.
    """

    tensors: dict[str, Tensor]
    words: str
    sender: str
    mean_std: str | None


class Inert:
    """Stands for an object of a class that a checkpoint names: whatever it was made of, it does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_pickled(path: Path) -> object:
    """What torch.save wrote: tensors and plain data. Security: no code of the file or of its classes ever runs."""
    classes: list[Any] = [argparse.Namespace]  # of most programs' options; it holds values and does nothing
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # torch.save's format since 1.6, which says which classes are in it
    if zipped:
        with safe_globals(classes):
            unknown = get_unsafe_globals_in_checkpoint(path)
        classes += [(Inert, name) for name in unknown]
    with warnings.catch_warnings(action="ignore"), safe_globals(classes):
        return torch.load(path, map_location="cpu", weights_only=True)


def find_backbone(stored: object, expected: Mapping[str, Tensor], path: Path) -> Backbone:
    """The tensors of `stored` that belong to a network whose state_dict is `expected`.

    Wrappers' prefixes are found, and heads are left out by their names. What the network lacks, and what it has and
    the file lacks, is left for the caller to refuse. Raises StepclrError where there are no tensors.
    """
    tensors = {_plain_name(name, expected): tensor for name, tensor in _flat(stored)}
    if not tensors:
        raise StepclrError(f"{path} does not contain a plain dictionary of tensors")
    prefix = _prefix(tensors, expected)
    numbered = None
    if "layer1.0.conv1.weight" in expected and f"{prefix}layer1.0.conv1.weight" not in tensors:
        numbered = _numbered_prefix(tensors)
    if numbered is not None:
        prefix, tensors = numbered, _with_names(tensors, numbered)

    own: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in tensors.items():
        inside = name.removeprefix(prefix) if name.startswith(prefix) else None
        first = (inside or name).split(".")[0]
        if inside is not None and (inside in expected or not HEADS.match(first)):
            own[inside] = tensor
        else:
            left_out[first] += 1
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked") and name not in own:  # older programs do not count
            own[name] = torch.zeros_like(tensor)
    words = f"{len(own)} tensors of {path}" + (f" under {prefix.removesuffix('.')}" if prefix else "")
    if left_out:
        words += "; left out " + ", ".join(f"{count} of {name}" for name, count in left_out.items())
    sender, mean_std = _sender(stored, tensors, prefix, numbered is not None)
    return Backbone(own, words, sender, mean_std)


def of_larger_module(stored: object, path: Path) -> tuple[dict[str, Tensor], str] | None:
    """The state_dict of an `Encoder` of this package that was part of a larger module, and its prefix; None: no such.

    Raises StepclrError where there are several.
    """
    tensors = dict(_flat(stored))
    prefixes = [name.removesuffix("mean") for name in tensors if name == "mean" or name.endswith(".mean")]
    found = []
    for prefix in prefixes:
        body = [name for name in tensors if name.startswith(f"{prefix}body.")]
        if body and f"{prefix}std" in tensors:
            own = [f"{prefix}mean", f"{prefix}std", *body]
            found.append(({name.removeprefix(prefix): tensors[name] for name in own}, prefix))
    if len(found) > 1:
        names = ", ".join(prefix.removesuffix(".") for _, prefix in found)
        raise StepclrError(f"{path} has several encoders: {names}; write the one to use into a file of its own")
    return found[0] if found else None


def parse_mean_std(text: str, channels: int = RGB) -> tuple[list[float], list[float]]:
    """(mean, std) of the channels of images in [0, 1], from "imagenet" (RGB alone), "none" or numbers with commas.

    There are twice as many numbers as channels: those of the mean, then those of the standard deviation.
    Raises StepclrError for anything else.
    """
    try:
        numbers = [float(number) for number in NAMED.get(text, text).split(",")]
    except (ValueError, AttributeError, TypeError):
        numbers = []
    if text == "none":
        numbers = [0.0] * channels + [1.0] * channels
    if len(numbers) != 2 * channels:
        of_rgb = "imagenet, none or six numbers (three of mean, three of std)"
        others = f"none or {2 * channels} numbers ({channels} of mean, {channels} of std)"
        raise StepclrError(f"mean_std must be {of_rgb if channels == RGB else others}, not {text!r}")
    for number in numbers[:channels]:
        check_number("the mean in mean_std", number)
    for number in numbers[channels:]:
        check_number("the std in mean_std", number, above=0)
    return numbers[:channels], numbers[channels:]


def _flat(stored: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries, under the dictionaries' keys joined by dots."""
    if not isinstance(stored, Mapping):
        return
    for key, value in stored.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif key not in TRAINING:
            yield from _flat(value, prefix if key in CONTAINERS else f"{prefix}{key}.")


def _plain_name(name: str, expected: Mapping[str, Tensor]) -> str:
    """A tensor's name without wrappers, and with timm's word for the shortcut of a residual block."""
    for wrapper in WRAPPERS:
        name = re.sub(rf"(^|\.){re.escape(wrapper)}", r"\1", name)
    if ".shortcut." in name and any(".downsample." in other for other in expected):
        name = name.replace(".shortcut.", ".downsample.")
    return name


def _prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What stands before the network's names: where most of them are found, and it is not a second network.

    A network that lacks some of its tensors is still found, so that no second network takes its place unnoticed.
    """
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                counts[".".join([*parts[:start], ""])] += 1
    if not counts:
        return ""
    most = max(counts.values())
    return _first([prefix for prefix, count in counts.items() if count > most / 2])


def _first(prefixes: list[str]) -> str:
    """The prefix of the network to take: the shortest one that does not name a second network (SECOND)."""

    def rank(prefix: str) -> tuple[bool, int]:
        words = set(re.split(r"[._]", prefix))
        return bool(words & SECOND), len(prefix)

    return min(prefixes, key=rank)


def _numbered_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """What stands before the numbers of a ResNet that became an nn.Sequential of its children; None if none did."""
    whole = []
    for name in tensors:
        match = re.match(r"(|.*?\.)\d+\.0\.conv1\.weight$", name)  # the first block of a stage
        if match and len(_numbers(tensors, match[1])) >= 6:
            whole.append(match[1])
    return _first(whole) if whole else None


def _numbers(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The children that have tensors."""
    firsts = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return sorted(int(first) for first in firsts if first.isdecimal())


def _with_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The numbered children under their names: those that have tensors are these six, in this order, then a head."""
    children = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
    names = dict(zip(map(str, _numbers(tensors, prefix)), children, strict=False))
    renamed = {}
    for name, tensor in tensors.items():
        first, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and first in names:
            name = f"{prefix}{names[first]}.{rest}"
        renamed[name] = tensor
    return renamed


def _sender(stored: object, tensors: Mapping[str, Tensor], prefix: str, numbered: bool) -> tuple[str, str | None]:
    """The program that wrote a checkpoint, and the mean and std that it trains with; None where that is not known."""
    assert isinstance(stored, Mapping)
    if {"opt", "model"} <= stored.keys():
        return "SupContrast", SUPCONTRAST.get(getattr(stored["opt"], "dataset", ""))
    if {"student", "teacher"} <= stored.keys():
        return "DINO", IMAGENET
    if prefix.endswith(("encoder_q.", "base_encoder.")):
        return "MoCo", IMAGENET
    if numbered or any(name.startswith("projection_head.layers.") for name in tensors):
        return "lightly", IMAGENET
    if "pytorch-lightning_version" in stored and any(name.startswith("classifier.") for name in tensors):
        return "solo-learn", SOLO_LEARN.get(_dataset(stored.get("hyper_parameters")))
    heads = [tensors.get(f"{name}.weight") for name in ("fc", "classifier", "head", "head.fc")]
    if not prefix and any(head is not None and len(head) == 1000 for head in heads):
        return "torchvision or timm", IMAGENET
    return "", None


def _dataset(settings: object) -> str:
    """The data set that solo-learn's settings name; its newer ones have it one level deeper."""
    if not isinstance(settings, Mapping):
        return ""
    data = settings.get("data")
    return str(data.get("dataset") if isinstance(data, Mapping) else settings.get("dataset"))
