"""`encoder.safetensors`: the weights, and in its metadata all that is needed to use them (HOUSE.md's run folder)."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stepclr.data.disk import write_whole
from stepclr.errors import StepclrError
from stepclr.model.encoder import Encoder, build_encoder, load_weights

FILE = "encoder.safetensors"
FIELDS = ("name", "stem", "size", "num_features", "classes")


def save_encoder(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Write weights, buffers and metadata (name, stem, size, num_features, classes, mean, std), all or nothing."""
    metadata = {field: json.dumps(getattr(encoder, field)) for field in FIELDS}
    metadata |= {buffer: json.dumps(getattr(encoder, buffer).flatten().tolist()) for buffer in ("mean", "std")}
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    content = save(tensors, metadata)
    write_whole(Path(path), lambda file: file.write(content))


def load_encoder(run: str | os.PathLike[str]) -> Encoder:
    """The encoder of a run (its folder, or an `encoder.safetensors` anywhere), in eval mode, with its preprocessing.

    Strict: every tensor must be there and fit, or StepclrError says what does not.
    """
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise StepclrError(f"no encoder at {path}; a finished run has one, so name its folder or go on with --resume")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        fields = {field: json.loads(metadata[field]) for field in FIELDS}
    except (SafetensorError, OSError, ValueError) as error:
        raise StepclrError(f"{path} cannot be read: {error}") from error
    except KeyError as error:
        raise StepclrError(f"{path} is no encoder of stepclr: its metadata has no {error}") from error
    encoder = build_encoder(fields["name"], fields["stem"], size=fields["size"])
    load_weights(encoder, path)
    encoder.classes = fields["classes"]
    return encoder.eval()
