"""Weights from files: this package's own encoders, and checkpoints of other programs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stepclr.data.reading import channels_words
from stepclr.errors import StepclrError, fault_of
from stepclr.model.encoder import Encoder
from stepclr.model.foreign import find_backbone, of_larger_module, parse_mean_std, read_pickled

ENCODER_FILE = "encoder.safetensors"  # of a run
STATISTICS = ("running_mean", "running_var", "mean", "std")  # buffers: those of BatchNorm and of an encoder


def load_weights(encoder: Encoder, path: Path) -> str:
    """Load a checkpoint file (.safetensors, .pt, .pth, ...) or a run's encoder into `encoder`.

    Of another program's checkpoint the backbone is found, and mean and std are those of its sender, if it is known.
    Returns what was loaded of it, in words; "" for this package's own file. Raises StepclrError unless every tensor of
    the encoder is there and fits.
    """
    if path.is_dir():
        path = path / ENCODER_FILE
    if not path.is_file():
        raise StepclrError(f"no weights at {path}")
    stored, metadata = _read(path)
    stem = metadata.get("stem")
    if stem and stem != encoder.stem:  # small and small-stride2 have the same shapes
        raise StepclrError(f"{path} has stem {stem}, but the encoder has stem {encoder.stem}; choose stem={stem}")
    channels = metadata.get("channels", encoder.channels)
    if channels != encoder.channels:
        taken = channels_words(channels)
        raise StepclrError(f"{path} takes {taken}, not {encoder.channels}: set channels={channels}")
    expected = uncompiled(encoder.state_dict())
    words = ""
    if isinstance(stored, Mapping) and (metadata or any(str(name).startswith("body.") for name in stored)):
        tensors = dict(stored)
    else:
        tensors, words = _of_other_program(stored, expected, path)
    if problems := _misfits(tensors, expected):
        raise StepclrError(f"{path} does not fit {encoder.name} with stem {encoder.stem}: {', '.join(problems)}")
    encoder.load_state_dict({name: tensors[_uncompiled_name(name)] for name in encoder.state_dict()})
    encoder.weights = metadata.get("weights", "")
    check_finite(encoder, path)
    return words


def stored_network(path: Path) -> tuple[str, str] | None:
    """Name and stem of the encoder in a run or a file of this package; None where it is another program's, or none."""
    path = path / ENCODER_FILE if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    _, metadata = _read(path)
    if not {"name", "stem"} <= metadata.keys():
        return None
    return str(metadata["name"]), str(metadata["stem"])


def set_mean_std(encoder: Encoder, text: str) -> None:
    """Set the encoder's mean and std, as `parse_mean_std` understands them."""
    mean, std = parse_mean_std(text, encoder.channels)
    encoder.mean.copy_(torch.tensor(mean).view(-1, 1, 1))
    encoder.std.copy_(torch.tensor(std).view(-1, 1, 1))


def is_finite(module: nn.Module) -> bool:
    """Whether all weights are finite numbers, and the statistics and other buffers too.

    A buffer of a user's own module may be infinite, as a mask of attention is, but not NaN.
    """
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    floats = []
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            finite = name in weights or name.rpartition(".")[2] in STATISTICS
            floats.append(tensor if finite else tensor.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0))
    # The largest absolute value: on a GPU, a few kernels for all tensors, and it is waited for once.
    return math.isfinite(torch.nn.utils.get_total_norm(floats, math.inf))


def uncompiled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have where nothing is compiled."""
    return {_uncompiled_name(name): tensor for name, tensor in tensors.items()}


def _uncompiled_name(name: str) -> str:
    return name.replace("_orig_mod.", "")


def to_store(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors writes them: on the CPU and contiguous. Of those that share memory, each is copied."""
    stored: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        stored[name] = tensor.detach().cpu().contiguous()
        storage = stored[name].untyped_storage().data_ptr()
        if storage in taken:
            stored[name] = stored[name].clone()
        taken.add(storage)
    return stored


def check_finite(module: nn.Module, path: Path) -> None:
    """Raise StepclrError if a weight or buffer, which came from the file at `path`, is not finite."""
    if not is_finite(module):
        raise StepclrError(f"{path} has weights that are not finite: its training diverged; use another encoder")


def _read(path: Path) -> tuple[object, dict[str, Any]]:
    """What the file holds, and its metadata if it is this package's own."""
    try:
        if path.suffix != ".safetensors":
            return read_pickled(path), {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "labels" not in metadata:
            own = metadata if "name" in metadata else {}
            return load_file(path), {name: json.loads(value) for name, value in own.items()}
    except Exception as error:  # an unpickler can fail in any way on a file that is not a checkpoint
        raise StepclrError(f"{path} cannot be read as a checkpoint: {fault_of(error)}") from error
    raise StepclrError(f"{path} is a classifier, not an encoder; name a run or its encoder")


def _of_other_program(stored: object, expected: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of another program's checkpoint under our names, with mean and std, and what is said of them."""
    if isinstance(stored, Mapping) and any(str(name).startswith("model.encoder.body.") for name in stored):
        raise StepclrError(f"{path} is a checkpoint of a run; name the run's folder, or resume the run to finish it")
    if own := of_larger_module(stored, path):
        tensors, prefix = own
        where = f" under {prefix.removesuffix('.')}" if prefix else ""
        return tensors, f"{len(tensors)} tensors of {path}{where}, with mean and std"
    body = {name.removeprefix("body."): tensor for name, tensor in expected.items() if name.startswith("body.")}
    backbone = find_backbone(stored, body, path)
    mean, std = parse_mean_std(backbone.mean_std or "none", len(expected["mean"]))
    tensors = {f"body.{name}": tensor for name, tensor in backbone.tensors.items()}
    tensors |= {"mean": torch.tensor(mean).view(-1, 1, 1), "std": torch.tensor(std).view(-1, 1, 1)}
    words = f"{backbone.words}; {backbone.sender}'s" if backbone.sender else backbone.words
    if backbone.mean_std is None:
        return tensors, f"{words}; its mean and std are not known, and images stay in [0, 1]: see mean_std"
    return tensors, f"{words}; mean and std {backbone.mean_std}"


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How many names are missing, unknown or of another shape, with an example of each."""
    shared = tensors.keys() & expected.keys()
    kinds = {
        "missing": sorted(expected.keys() - shared),
        "unknown": sorted(tensors.keys() - shared),
        "of another shape": sorted(name for name in shared if tensors[name].shape != expected[name].shape),
    }
    return [f"{len(names)} {kind} (such as {names[0]})" for kind, names in kinds.items() if names]
