"""Embeddings: h of every image of a source."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.device import default_device
from stepclr.distributed import join
from stepclr.errors import StepclrError, choose
from stepclr.io import write_whole
from stepclr.model.encoder import Encoder
from stepclr.model.features import Written, fill_unreadable, represent
from stepclr.model.files import load_encoder
from stepclr.threads import Progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Embeddings:
    """Representations h `[m, F]` of the readable images of a set, and the indices `[m]` of these images."""

    encoder: Encoder
    images: ImageSet
    h: Float32[np.ndarray, "m features"]
    kept: Int64[np.ndarray, " m"]


def embed(
    run: str | os.PathLike[str], images: Source, precision: str = "fp32", progress: Progress | None = None
) -> Float32[np.ndarray, "n features"]:
    """Representations h `[n, F]`, float32, of all images of `images` in their order, by the encoder of `run`.

    Args:
        run: a run's folder or an `encoder.safetensors`.
        images: an `ImageSet` or anything `open_images` takes.
        precision: of the encoder's arithmetic, "fp32" or "bf16".
        progress: is called with (images done, images in all).

    An image that cannot be read has a row of NaN, and a warning reports how many there are. Raises StepclrError if
    no image can be read.
    """
    embeddings = represented(run, images, precision, progress)
    return fill_unreadable(embeddings.h, embeddings.kept, embeddings.images)


def write_npz(
    run: str | os.PathLike[str], images: Source, path: Path, precision: str, progress: Progress | None
) -> Written:
    """Write `embeddings` float32 `[n, F]`, `paths`, `labels` (-1: none), `classes`."""
    embeddings = represented(run, images, precision, progress)
    source, kept = embeddings.images, embeddings.kept
    content = io.BytesIO()
    np.savez(
        content,
        embeddings=embeddings.h,
        paths=np.array([source.names[i] for i in kept], dtype=np.str_),
        labels=source.labels[kept],
        classes=np.array(source.classes, dtype=np.str_),
    )
    if join().first:
        write_whole(path, lambda file: file.write(content.getbuffer()))
        source.list_skipped(path.with_suffix(".skipped.csv"))
    return Written(len(kept), len(source) - len(kept))


def dtype_of(precision: str) -> torch.dtype:
    """The type of the encoder's arithmetic; StepclrError unless it is "fp32" or "bf16"."""
    return DTYPES[choose("precision", precision, DTYPES)]


def resized(images: ImageSet, short_side: int) -> ImageSet:
    """As for training and evaluation, so that h is the same; not cached, because the images are read only once."""
    return images.decoded(short_side, budget=0)


def represented(
    run: str | os.PathLike[str],
    images: Source,
    precision: str,
    progress: Progress | None,
    resize: Callable[[ImageSet, int], ImageSet] = resized,
) -> Embeddings:
    """h of the images, which `resize` reduces to the short side that the encoder is given.

    Raises StepclrError if no image can be read.
    """
    dtype, world = dtype_of(precision), join()
    encoder = load_encoder(run).to(default_device())
    source = resize(open_images(images), source_side(encoder.size))
    h, kept = represent(encoder, source, dtype, progress=progress, world=world)
    source.skipped = world.union(source.skipped)
    if not len(kept):
        raise StepclrError(f"no image of {source.source} can be read")
    return Embeddings(encoder, source, h.numpy(), kept)
