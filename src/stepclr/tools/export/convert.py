"""Step 8: an encoder or a classifier as a file for others, compared with the original before it appears."""

import copy
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from stepclr.data.images import ImageSet
from stepclr.data.reading import RGB
from stepclr.data.sources import Source, open_images
from stepclr.errors import StepclrError, check_suffix, choose, first_line, installed
from stepclr.io import check_writable, write_whole
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import CLASSIFIER, is_classifier, is_stepclrs, load_classifier, load_encoder
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.classifier import logits
from stepclr.pretraining.run import Run
from stepclr.tools.export.card import Parity, card
from stepclr.tools.export.formats import FORMATS, Format, Network, encoder_of, out_of
from stepclr.tools.search.index import METADATA_FILE

IMAGES = 64  # to compare on
SAMPLE = "sample:test"
MAX_DIFFERENCE = 1e-4  # relative to the largest feature


class ExportMismatchError(RuntimeError):
    """The exported file does not compute what the original computes; it was discarded."""


@dataclass(frozen=True)
class Export:
    """The file, its card (`<file>.md`), and how far the file's features are from the original's."""

    path: Path
    card: Path
    parity: Parity


def export(
    run: str | os.PathLike[str], out: str | os.PathLike[str], format: str = "onnx", check: Source = SAMPLE
) -> Export:
    """Write the encoder of `run`, or a classifier, to a file that others load without stepclr, and its card.

    Args:
        run: a run's folder, an encoder file, "timm:NAME", or a classifier file, which is exported as a classifier.
        out: the file, or a folder to put it in.
        format: "onnx" and "torch-export" take uint8 images `[n, C, S, S]`, any n, and include the preprocessing;
            "torchvision" and "timm" are weights that these libraries load strictly; "safetensors" is our own file.
        check: real images to compare file and original on, at most 64; anything `open_images` takes. For an encoder of
            other channels than RGB, each channel of the default is another gray image.

    The file is loaded by the code on its card; its features may differ by 1e-4 of the largest one at most. Raises
    `ExportMismatchError` if they differ more; StepclrError for a network that the format cannot contain, a suffix that
    is not the format's, packages that are not installed, and if no image of `check` can be read.
    """
    writer = FORMATS[choose("format", format, FORMATS)]
    for package in writer.packages:
        installed(package, "export", "this format")
    source = Path(run) / ENCODER_FILE if Path(run).is_dir() else Path(run)
    network = _load(source)
    path = _path(Path(out), writer, network, source)
    images = _to_compare_on(check, encoder_of(network))
    pixels = _pixels(encoder_of(network), images)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as draft:
        # Written and compared in a temporary folder, so that a file that differs never appears at `path`. The original
        # is read again, because writing may have altered the network.
        written = Path(draft) / path.name
        _write(writer, network, written, format)
        code = writer.code(network)
        difference = _difference(_by_card(written, code, pixels), _by_original(_load(source), pixels))
        if not difference <= MAX_DIFFERENCE:
            raise ExportMismatchError(
                f"{path} was discarded: as {format} its {out_of(network)} differ from the original's by "
                f"{difference:.1e} of the largest one; the tolerance is {MAX_DIFFERENCE:.0e}"
            )
        parity = Parity(difference, len(pixels), images.source)
        text = card(source, network, path.name, format, code, parity)
        with written.open("rb") as content:
            write_whole(path, lambda file: shutil.copyfileobj(content, file))
    card_path = path.with_name(f"{path.name}.md")
    write_whole(card_path, lambda file: file.write(text.encode(errors="surrogateescape")))
    return Export(path, card_path, parity)


def _load(source: Path) -> Network:
    return load_classifier(source) if is_classifier(source) else load_encoder(source)


def _to_compare_on(check: Source, encoder: Encoder) -> ImageSet:
    images = open_images(check, limit=IMAGES)
    # The default is gray, in three equal channels. Images of as many different channels show whether any are exchanged.
    if encoder.channels != RGB and isinstance(check, str) and check == SAMPLE:
        gray = torch.stack(list(images.read(range(len(images)))))[:, 0]
        channels = [gray.roll(number, 0) for number in range(encoder.channels)]
        images = replace(open_images(torch.stack(channels, 1), channels=encoder.channels), source=SAMPLE)
    return copy.copy(encoder).ranged(images)  # the encoder does not keep their value range


def _path(out: Path, writer: Format, network: Network, source: Path) -> Path:
    if out.is_dir() or not out.suffix:
        name = "classifier" if isinstance(network, Classifier) else "encoder"
        out = out / f"{name}{writer.suffix}"
    check_suffix(out, [writer.suffix])
    check_writable(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise StepclrError(f"out {out} is the same file as the encoder; choose another")
    if out.exists() and out.name in (ENCODER_FILE, CLASSIFIER):
        if Run(out.parent).exists():
            raise StepclrError(f"out {out} belongs to the run {out.parent}; choose another")
        if (out.parent / METADATA_FILE).is_file():
            raise StepclrError(f"out {out} belongs to the index {out.parent}; choose another")
        if writer is not FORMATS["safetensors"] and is_stepclrs(out):
            raise StepclrError(f"out {out} is a file of stepclr, which no other format replaces; choose another")
    return out


def _write(writer: Format, network: Network, path: Path, format: str) -> None:
    try:
        writer.write(network, path)
    except (StepclrError, OSError):
        raise
    except Exception as error:  # an exporter can fail in any way on a network that is new to it
        problem = f"{encoder_of(network).name} cannot be written as {format}, use format=safetensors"
        raise StepclrError(f"{problem}: {first_line(error)}") from error


def _pixels(encoder: Encoder, images: ImageSet) -> UInt8[Tensor, "n c s s"]:
    """Images as the exported network takes them: resized and cropped as for the encoder, in 8 bits."""
    pixels, kept = images.read_readable(np.arange(len(images)))
    if not len(kept):
        raise StepclrError(f"no image of {images.source} can be read")
    return (encoder.preprocess(pixels) * 255).round().to(torch.uint8)


def _by_card(path: Path, code: str, images: UInt8[Tensor, "n c s s"]) -> Float[np.ndarray, "n out"]:
    """What the code on the card computes from the file."""
    scope: dict[str, Any] = {"path": os.fspath(path), "images": images}
    try:
        # Security: `formats.py` wrote this code. Of what a file or a user says, it contains the encoder's name, which
        # is one of timm's or torchvision's and quoted by repr or looked up, and numbers.
        exec(code, scope)
    except (RuntimeError, TypeError) as error:
        hint = "use format=onnx or format=torch-export"
        raise StepclrError(f"could not load the exported file, {hint}: {first_line(error)}") from error
    return np.asarray(scope["logits" if "logits" in scope else "h"])


def _by_original(network: Network, images: UInt8[Tensor, "n c s s"]) -> Float[np.ndarray, "n out"]:
    """What `embed` computes from the same images, or `predict` before its softmax, on the CPU.

    Both crop the center: the images are given the border that will be cut off.
    """
    border = encoder_of(network).side - encoder_of(network).test_size
    before = round(border / 2)
    framed = open_images(F.pad(images, (before, border - before) * 2), channels=images.shape[1])
    out, _ = logits(network, framed) if isinstance(network, Classifier) else represent(network, framed)
    return out.numpy()


def _difference(exported: Float[np.ndarray, "n out"], original: Float[np.ndarray, "n out"]) -> float:
    """The largest difference, relative to the largest value of the original."""
    if exported.shape != original.shape:
        raise ExportMismatchError(
            f"the exported file computes an array {list(exported.shape)}, the original {list(original.shape)}"
        )
    return float(np.abs(exported - original).max() / (np.abs(original).max() or 1))  # 1: an encoder that collapsed to 0
