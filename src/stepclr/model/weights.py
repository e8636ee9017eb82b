"""Weights from files: this package's own encoders, and checkpoints of other programs."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stepclr.errors import StepclrError, first_line
from stepclr.model.encoder import Encoder

FILE = "encoder.safetensors"  # of a run
WRAPPERS = ("module.", "encoder.", "backbone.")  # prefixes that DistributedDataParallel and others put before names
CLASSIFIERS = ("fc", "classifier", "head")  # layers of other networks that an encoder does not have


def load_weights(encoder: Encoder, path: Path) -> None:
    """Load a checkpoint file (.safetensors, .pt, .pth) or a run's encoder into `encoder`.

    A classifier of another program's network is left out. Raises StepclrError unless all other names and shapes fit.
    """
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise StepclrError(f"no weights at {path}")
    stored, stem = _read(path)
    if stem and stem != encoder.stem:  # small and small-stride2 have the same shapes
        raise StepclrError(f"{path} has stem {stem}, but the encoder has stem {encoder.stem}; choose stem={stem}")
    expected = encoder.state_dict()
    tensors = _unwrap(stored, path)
    if not any(name.startswith("body.") for name in tensors):
        tensors = _of_other_network(tensors, expected)
    if problems := _misfits(tensors, expected):
        raise StepclrError(f"{path} does not fit {encoder.name} with stem {encoder.stem}: {', '.join(problems)}")
    encoder.load_state_dict(tensors)
    check_finite(encoder, path)


def is_finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are finite numbers, those of BatchNorm's statistics included."""
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in floats]).all())  # a GPU is waited for once


def check_finite(module: nn.Module, path: Path) -> None:
    """Raise StepclrError if a weight or buffer, which came from the file at `path`, is not finite."""
    if not is_finite(module):
        raise StepclrError(f"{path} has weights that are not finite: its training diverged; use another encoder")


def _read(path: Path) -> tuple[object, str | None]:
    """What the file holds, and the stem that its metadata names."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            tensors, stem = load_file(path), json.loads(metadata.get("stem", "null"))
        else:
            metadata, stem = {}, None
            with warnings.catch_warnings(action="ignore"):
                # Security: with weights_only a file from elsewhere is data, never code.
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler can fail in any way on a file that is not a checkpoint
        raise StepclrError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if "labels" in metadata:
        raise StepclrError(f"{path} is a classifier, not an encoder; name a run or its encoder")
    return tensors, stem


def _unwrap(stored: object, path: Path) -> dict[str, Tensor]:
    """The tensors under their plain names: taken out of "state_dict" or "model", and without a wrapper's prefix."""
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise StepclrError(f"{path} does not contain a plain dictionary of tensors")
    tensors: dict[str, Tensor] = stored
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _of_other_network(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a body alone, under our names: without its classifier, and with the encoder's preprocessing."""
    renamed = {"mean": expected["mean"], "std": expected["std"]}
    for name, value in tensors.items():
        if f"body.{name}" in expected or name.split(".")[0] not in CLASSIFIERS:
            renamed[f"body.{name}"] = value
    return renamed


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How many names are missing, unknown or of another shape, with an example of each."""
    shared = tensors.keys() & expected.keys()
    kinds = {
        "missing": sorted(expected.keys() - shared),
        "unknown": sorted(tensors.keys() - shared),
        "of another shape": sorted(name for name in shared if tensors[name].shape != expected[name].shape),
    }
    return [f"{len(names)} {kind} (such as {names[0]})" for kind, names in kinds.items() if names]
