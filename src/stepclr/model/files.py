"""`encoder.safetensors`, `classifier.safetensors`: weights, and metadata that says how to build the network."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stepclr.data.reading import RGB, Range
from stepclr.errors import StepclrError, check_suffix, fault_of
from stepclr.io import from_json, in_order, write_whole
from stepclr.model.build import OWN_MODULE, build_encoder, off_the_shelf
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.head import parse_head
from stepclr.model.timm_weights import TIMM, timm_name
from stepclr.model.weights import ENCODER_FILE, check_finite, load_weights, to_store, uncompiled
from stepclr.views.policies import FLIP
from stepclr.views.reference import Interpolation

CLASSIFIER = "classifier.safetensors"
# What files of an earlier version do not say.
OLDER: dict[str, Any] = {
    "value_range": None,
    "channels": RGB,
    "test_size": None,
    "side": None,
    "interpolation": "bicubic",
    "squash": False,
    "weights": "",
    "min_area": None,
    "flip": FLIP,
}
# A larger one in a corrupt file would fill the memory: of a head's layer, and of an image's side in pixels.
MAX_WIDTH, MAX_SIDE = 2**20, 2**14


@dataclass(frozen=True)
class EncoderMetadata:
    """What an encoder file says about its network; each field is a JSON value in the file's metadata.

    The name of a user's own module begins with "module:"; its architecture is not in the file.
    """

    name: str
    stem: str
    size: int
    num_features: int
    classes: list[str]
    normalize_h: bool
    value_range: Range | None
    channels: int
    test_size: int | None
    side: int | None
    interpolation: Interpolation
    squash: bool
    weights: str

    def build(self, path: Path, module: nn.Module | None = None) -> Encoder:
        """The encoder without the weights of the file at `path`; `module` is its network where that is the user's."""
        if self.name.startswith(OWN_MODULE):
            if module is None:
                own = self.name.removeprefix(OWN_MODULE)
                raise StepclrError(
                    f"{path} holds the weights of your own module: in Python, pass module={own}(...) to load_encoder, "
                    "load_classifier, evaluate, finetune, embed or predict"
                )
            encoder = build_encoder(
                module, "own", None, self.size, self.normalize_h, self.num_features, channels=self.channels
            )
        else:
            if module is not None:
                raise StepclrError(f"{path} holds weights of {self.name}, not of your own module; do not pass module")
            encoder = build_encoder(self.name, self.stem, None, self.size, self.normalize_h, channels=self.channels)
        encoder.test_size, encoder.side = self.test_size or self.size, self.side or encoder.side
        for attribute in ("classes", "value_range", "interpolation", "squash", "weights"):
            setattr(encoder, attribute, getattr(self, attribute))
        return encoder


@dataclass(frozen=True)
class ClassifierMetadata(EncoderMetadata):
    """What a classifier file says about its network: `labels` are its classes, the others as in `Classifier`."""

    labels: list[str]
    head: str
    kept_layers: int
    min_area: float | None
    flip: float


Metadata = TypeVar("Metadata", bound=EncoderMetadata)


def save_encoder(encoder: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write an encoder, with its preprocessing, into a file `NAME.safetensors` for `load_encoder`, all or nothing.

    Every function and command that takes a run takes such a file. Raises StepclrError for another suffix, and for what
    is no `Encoder` (compiled or not).
    """
    encoder = getattr(encoder, "_orig_mod", encoder)
    if not isinstance(encoder, Encoder):
        raise StepclrError(f"save_encoder takes an Encoder, not {type(encoder).__name__}: give the one inside")
    check_suffix(Path(path), [Path(ENCODER_FILE).suffix])
    _save(encoder, encoder, _encoder_values(encoder), path)


def load_encoder(run: str | os.PathLike[str], module: nn.Module | None = None) -> Encoder:
    """The encoder of a run (its folder, or an `encoder.safetensors` anywhere), or timm's, with its preprocessing.

    "timm:NAME" is any network for which timm has weights, as they are, with the preprocessing that they were made for;
    their file is the one that timm uses, downloaded if need be. The encoder is in eval mode.

    Where the run was pretrained with your own module, `module` must be such a module; it receives the weights.
    `evaluate`, `finetune`, `embed`, `predict` and `load_classifier` take it too. Raises StepclrError unless every
    tensor is there, fits and is finite.
    """
    if (name := timm_name(run)) is not None:
        if module is not None:
            raise StepclrError(f"{run} is a network of timm, not your own module; do not pass module")
        return off_the_shelf(name)
    if isinstance(run, nn.Module):
        raise StepclrError("an encoder is loaded from a file: save_encoder(encoder, 'encoder.safetensors') writes one")
    path = Path(run)
    path = path / ENCODER_FILE if path.is_dir() else path
    if path.is_file() and path.suffix != Path(ENCODER_FILE).suffix:
        raise StepclrError(
            f"{path} is not a file that save_encoder writes; build_encoder(NAME, weights={os.fspath(path)!r}) takes "
            "checkpoints of other programs"
        )
    if not path.is_file():
        if timm.is_model(str(run)) and not path.exists():
            raise StepclrError(f"there is no run {run}. Did you mean '{TIMM}{run}'?")
        takes = f"give the folder of a finished run (or resume the run), an encoder file or {TIMM}NAME"
        if path == Path(run) and path.suffix == Path(ENCODER_FILE).suffix:
            raise StepclrError(f"{path} does not exist; {takes}")
        there = "" if Path(run).exists() else "it does not exist: "
        raise StepclrError(f"{Path(run)} has no {ENCODER_FILE}; {there}{takes}")
    metadata = _read(path)
    if "labels" in metadata:
        raise StepclrError(f"{path} is a classifier, not an encoder; name a run or its {ENCODER_FILE}")
    encoder = _parse(EncoderMetadata, metadata, path).build(path, module)
    load_weights(encoder, path)
    return encoder.eval()


def save_classifier(classifier: Classifier, path: str | os.PathLike[str]) -> None:
    """Write encoder, kept head layers, linear layer and metadata, all or nothing."""
    values = {
        **_encoder_values(classifier.encoder),
        "labels": classifier.classes,
        "head": classifier.head,
        "kept_layers": classifier.kept_layers,
        "min_area": classifier.min_area,
        "flip": classifier.flip,
    }
    _save(classifier, classifier.encoder, values, path)


def is_stepclrs(path: Path) -> bool:
    """Whether `save_encoder` or `save_classifier` wrote this file, by its metadata."""
    return "name" in _metadata(path)


def is_classifier(path: Path) -> bool:
    """Whether this is the file of a classifier, by its metadata."""
    return "labels" in _metadata(path)


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; none where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def load_classifier(path: str | os.PathLike[str], module: nn.Module | None = None) -> Classifier:
    """The classifier in a file, or in a run's folder as `classifier.safetensors`, in eval mode.

    Raises StepclrError unless every tensor is there, fits and is finite.
    """
    encoder, path = os.fspath(path), Path(path)
    out = "" if path.is_dir() else f" --out {CLASSIFIER}"  # a run has a place for its classifier
    trains = f"stepclr finetune {encoder} --train LABELED{out} trains one from it"
    path = path / CLASSIFIER if path.is_dir() else path
    if timm_name(encoder) is not None:
        raise StepclrError(f"{encoder} is an encoder, not a classifier; {trains}")
    if not path.is_file():
        trains = trains if path.parent == Path(encoder) else "stepclr finetune trains one from a run"
        raise StepclrError(f"no classifier at {path}; {trains}")
    metadata = _read(path)
    if "labels" not in metadata:
        raise StepclrError(f"{path} is an encoder, not a classifier; {trains}")
    facts = _parse(ClassifierMetadata, metadata, path)
    if not _possible(facts):
        raise StepclrError(f"{path} is corrupt: it cannot keep {facts.kept_layers} layers of the head {facts.head!r}")
    classifier = Classifier(facts.build(path, module), facts.labels, facts.head, facts.kept_layers)
    try:
        classifier.load_state_dict(load_file(path))
    except RuntimeError as error:  # a line for each tensor
        raise StepclrError(f"{path} does not fit the network that its metadata describes") from error
    except (SafetensorError, OSError) as error:
        raise StepclrError(f"{path} cannot be read: {fault_of(error)}") from error
    check_finite(classifier, path)
    classifier.min_area, classifier.flip = facts.min_area, facts.flip
    return classifier.eval()


def _possible(facts: ClassifierMetadata) -> bool:
    """Whether there is a head that these layers are the first of."""
    if not facts.kept_layers:
        return True
    try:
        widths, _ = parse_head(facts.head)
    except StepclrError:
        return False
    return 0 < facts.kept_layers <= len(widths) and max(widths) <= MAX_WIDTH


def state_checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state_dict: the names, types, shapes and bytes of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(uncompiled(tensors).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _encoder_values(encoder: Encoder) -> dict[str, Any]:
    return {field.name: getattr(encoder, field.name) for field in fields(EncoderMetadata)}


def _save(module: nn.Module, encoder: Encoder, values: dict[str, Any], path: str | os.PathLike[str]) -> None:
    # The tensors contain mean and std too; this copy is for programs that read the metadata alone.
    values = values | {"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()}
    tensors = to_store(uncompiled(module.state_dict()))
    content = in_order(save(tensors, {name: json.dumps(value) for name, value in values.items()}))
    write_whole(Path(path), lambda file: file.write(content))


def _read(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            own = metadata if "name" in metadata else {}  # other programs' metadata need not be JSON
            return {name: json.loads(value) for name, value in own.items()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StepclrError(f"{path} cannot be read: {fault_of(error)}") from error


def _parse(kind: type[Metadata], metadata: dict[str, Any], path: Path) -> Metadata:
    if "name" not in metadata:
        raise StepclrError(f"{path} was not written by stepclr: its metadata has no 'name'")
    where = f"the metadata of {path}"
    read = from_json(kind, OLDER | metadata, where)
    for name, pixels in (("size", read.size), ("test_size", read.test_size), ("side", read.side)):
        if pixels is not None and not 0 < pixels <= MAX_SIDE:
            raise StepclrError(f"{where} is corrupt: {name} is {pixels}")
    return read
