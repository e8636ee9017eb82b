"""Step 8: a run's encoder, or a classifier, as a file for others, compared with the original before it appears."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.errors import StepclrError, check_suffix, choose
from stepclr.io import write_whole
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import FILE, load_classifier, load_encoder
from stepclr.pretraining.classifier import logits
from stepclr.tools.export.card import Parity, card
from stepclr.tools.export.formats import FORMATS, Format, Network, encoder_of, out_of

IMAGES = 64  # to compare on
MOST = 1e-4  # difference, relative to the largest feature


class Differs(RuntimeError):
    """What was written does not compute what the original does; it was not kept."""


@dataclass(frozen=True)
class Export:
    """The file, the card beside it (`<file>.md`), and how far the file's features are from the original's."""

    path: Path
    card: Path
    parity: Parity


def export(
    run: str | os.PathLike[str], out: str | os.PathLike[str], format: str = "onnx", check: Source = "sample:test"
) -> Export:
    """Write the encoder of `run`, or a classifier, to a file that others load without stepclr, and its card beside it.

    Args:
        run: a run's folder, an encoder file, or a classifier file, which is exported as a classifier.
        out: the file, or a folder to put it in.
        format: "onnx" or "torch-export" take uint8 images `[n, 3, S, S]`, any n, and have the preprocessing inside;
            "torchvision" and "timm" are weights that these load strictly; "safetensors" is our own file, whole.
        check: real images to compare file and original on, at most 64; anything `open_images` takes.

    The file is loaded by the other party's own code; its features may be off by 1e-4 of the largest one at most.
    Raises `Differs` if they are further off; StepclrError for a network that the format cannot hold, a suffix that is
    not the format's, packages that are not installed, and where no image of `check` can be read.
    """
    how = FORMATS[choose("format", format, FORMATS)]
    how.check_packages()
    source = Path(run) / FILE if Path(run).is_dir() else Path(run)
    network = _load(source)
    path = _place(Path(out), how, network, source)
    pixels = _images(encoder_of(network), images := open_images(check, limit=IMAGES))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as draft:
        written = Path(draft) / path.name
        _write(how, network, written, format)
        code = how.code(network)
        difference = _difference(_by_others(written, code, pixels), _by_us(_load(source), pixels))
        if not difference <= MOST:
            raise Differs(
                f"{path} was not kept: as {format} its {out_of(network)} differ from the original's by "
                f"{difference:.1e} of the largest one, and {MOST:.0e} is allowed"
            )
        parity = Parity(difference, len(pixels), images.source)
        text = card(source, network, path.name, format, code, parity)
        with written.open("rb") as content:
            write_whole(path, lambda file: shutil.copyfileobj(content, file))
    beside = path.with_name(f"{path.name}.md")
    write_whole(beside, lambda file: file.write(text.encode(errors="surrogateescape")))
    return Export(path, beside, parity)


def _load(source: Path) -> Network:
    try:
        with safe_open(source, framework="pt") as file:
            classifies = "labels" in (file.metadata() or {})
    except (SafetensorError, OSError):
        classifies = False  # load_encoder says what is wrong
    return load_classifier(source) if classifies else load_encoder(source)


def _place(out: Path, how: Format, network: Network, source: Path) -> Path:
    if out.is_dir() or not out.suffix:
        out = out / f"{'classifier' if isinstance(network, Classifier) else 'encoder'}{how.suffix}"
    check_suffix(out, [how.suffix])
    if out.exists() and out.samefile(source):
        raise StepclrError(f"--out {out} is the very file that is exported: name another")
    return out


def _write(how: Format, network: Network, path: Path, format: str) -> None:
    try:
        how.write(network, path)
    except (StepclrError, OSError):
        raise
    except Exception as error:  # on a network that is new to it, an exporter can fail in any way
        name, why = encoder_of(network).name, str(error).strip().split("\n")[0]
        raise StepclrError(f"{name} cannot be written as {format}, take --format safetensors: {why}") from error


def _images(encoder: Encoder, images: ImageSet) -> UInt8[Tensor, "n 3 s s"]:
    """Images as the exported network takes them: resized and cropped as the encoder has it, in 8 bits."""
    pixels, kept = images.read_readable(np.arange(len(images)))
    if not len(kept):
        raise StepclrError(f"no image of {images.source} can be read")
    return (encoder.preprocess(pixels) * 255).round().to(torch.uint8)


def _by_others(path: Path, code: str, images: UInt8[Tensor, "n 3 s s"]) -> Float[np.ndarray, "n out"]:
    """What the code on the card makes of the file."""
    scope: dict[str, Any] = {"path": os.fspath(path), "images": images}
    try:
        exec(code, scope)
    except (RuntimeError, TypeError) as error:
        why = str(error).strip().split("\n")[0]
        raise StepclrError(f"it cannot be loaded so, take --format onnx or torch-export: {why}") from error
    return np.asarray(scope["logits" if "logits" in scope else "h"])


def _by_us(network: Network, images: UInt8[Tensor, "n 3 s s"]) -> Float[np.ndarray, "n out"]:
    """What `embed` makes of the same images, or `predict` before its softmax, on the CPU.

    Both crop: the images get the border that will be cut off.
    """
    border = encoder_of(network).side - encoder_of(network).size
    before = round(border / 2)
    framed = open_images(F.pad(images, (before, border - before) * 2))
    out, _ = logits(network, framed) if isinstance(network, Classifier) else represent(network, framed)
    return out.numpy()


def _difference(theirs: Float[np.ndarray, "n out"], ours: Float[np.ndarray, "n out"]) -> float:
    """The largest difference, relative to the largest of ours."""
    if theirs.shape != ours.shape:
        raise Differs(f"what was written gives {list(theirs.shape)}, and the original {list(ours.shape)}")
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())
