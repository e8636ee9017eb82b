"""`encoder.safetensors`, `classifier.safetensors`: weights, and in the metadata all that is needed to use them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stepclr.errors import StepclrError
from stepclr.io import write_whole
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder, build_encoder, load_weights

FILE, CLASSIFIER = "encoder.safetensors", "classifier.safetensors"
FIELDS = ("name", "stem", "size", "num_features", "classes", "normalize_h")
KINDS = {"name": str, "stem": str, "size": int, "classes": list, "normalize_h": bool, "labels": list, "kept": list}
PARTS = {"classes": str, "labels": str, "kept": int}  # what is in the lists
WIDEST = 2**20  # of a layer, in numbers
FieldsOf = dict[str, Any]


def save_encoder(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Write weights, buffers and metadata (FIELDS, mean, std), all or nothing."""
    _save(encoder, _fields(encoder), path)


def load_encoder(run: str | os.PathLike[str]) -> Encoder:
    """The encoder of a run (its folder, or an `encoder.safetensors` anywhere), in eval mode, with its preprocessing.

    Strict: every tensor must be there and fit, or StepclrError says what does not.
    """
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise StepclrError(f"no encoder at {path}; a finished run has one, so name its folder or go on with --resume")
    fields = _read(path)
    if "labels" in fields:
        raise StepclrError(f"{path} is a classifier, and an encoder is wanted: name a run or its {FILE}")
    encoder = _build(fields)
    load_weights(encoder, path)
    return encoder.eval()


def save_classifier(classifier: Classifier, path: str | os.PathLike[str]) -> None:
    """Write encoder, kept head layers and linear layer, with the names of the classes, all or nothing."""
    fields = {**_fields(classifier.encoder), "labels": classifier.classes, "kept": classifier.kept}
    _save(classifier, fields, path)


def load_classifier(path: str | os.PathLike[str]) -> Classifier:
    """The classifier in a file, or in a run's folder as `classifier.safetensors`, in eval mode.

    Strict: every tensor must be there and fit, or StepclrError says what does not.
    """
    path = Path(path)
    path = path / CLASSIFIER if path.is_dir() else path
    if not path.is_file():
        raise StepclrError(f"no classifier at {path}; stepclr finetune makes one of a run")
    fields = _read(path)
    if "labels" not in fields:
        raise StepclrError(f"{path} is an encoder, and a classifier is wanted: stepclr finetune makes one of a run")
    classifier = Classifier(_build(fields), fields["labels"], fields.get("kept", []))  # else the weights will not fit
    try:
        classifier.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise StepclrError(f"{path} does not fit the network that it names: {error}") from error
    return classifier.eval()


def state_checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state_dict: the names, types, shapes and bytes of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _fields(encoder: Encoder) -> FieldsOf:
    fields = {field: getattr(encoder, field) for field in FIELDS}
    return fields | {buffer: getattr(encoder, buffer).flatten().tolist() for buffer in ("mean", "std")}


def _build(fields: FieldsOf) -> Encoder:
    # Files from before there was such a choice do not say: they were not normalized.
    normalize_h = fields.get("normalize_h", False)
    encoder = build_encoder(fields["name"], fields["stem"], size=fields["size"], normalize_h=normalize_h)
    encoder.classes = fields["classes"]
    return encoder


def _save(module: nn.Module, fields: FieldsOf, path: str | os.PathLike[str]) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    content = save(tensors, {name: json.dumps(value) for name, value in fields.items()})
    write_whole(Path(path), lambda file: file.write(content))


def _read(path: Path) -> FieldsOf:
    try:
        with safe_open(path, framework="pt") as file:
            fields = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StepclrError(f"{path} cannot be read: {error}") from error
    for field in FIELDS[:-1]:
        if field not in fields:
            raise StepclrError(f"{path} is no encoder of stepclr: its metadata has no {field!r}")
    for field in (field for field in KINDS if field in fields):
        if not isinstance(fields[field], KINDS[field]):
            raise StepclrError(f"{path} is damaged: its metadata's {field!r} is {fields[field]!r}")
    for field in (field for field in PARTS if field in fields):
        if any(type(part) is not PARTS[field] for part in fields[field]):
            raise StepclrError(f"{path} is damaged: its metadata's {field!r} is {fields[field]!r}")
    kept = fields.get("kept") or [1, 1, 1, 1]
    if len(kept) not in (4, 5) or not all(0 < width <= WIDEST for width in kept):
        raise StepclrError(f"{path} is damaged: its metadata's 'kept' is {kept!r}")
    return fields
