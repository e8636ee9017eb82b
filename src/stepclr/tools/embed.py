"""Embeddings: h of every image of a source."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

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


def embed(
    run: str | os.PathLike[str], images: Source, precision: str = "fp32", progress: Progress | None = None
) -> Float32[np.ndarray, "n features"]:
    """Representations h `[n, F]`, float32, of all images of `images` in their order, by the encoder of `run`.

    Args: run: a run's folder or an `encoder.safetensors`. images: an `ImageSet` or anything `open_images` takes.
    precision: arithmetic of the encoder, "fp32" or "bf16".
    An image that cannot be read has a row of NaN, and a warning says how many there are.
    """
    _, source, h, kept = represented(run, images, precision, progress)
    return fill_unreadable(h, kept, source)


def write_npz(
    run: str | os.PathLike[str], images: Source, path: Path, precision: str, progress: Progress | None
) -> Written:
    """Write `embeddings` float32 `[n, F]`, `paths`, `labels` (-1: none), `classes`."""
    _, source, h, kept = represented(run, images, precision, progress)
    content = io.BytesIO()
    np.savez(
        content,
        embeddings=h,
        paths=np.array([source.names[i] for i in kept], dtype=np.str_),
        labels=source.labels[kept],
        classes=np.array(source.classes, dtype=np.str_),
    )
    if join().first:
        write_whole(path, lambda file: file.write(content.getbuffer()))
        source.list_skipped(path.with_suffix(".skipped.csv"))
    return Written(len(kept), len(source) - len(kept))


def reduced(source: ImageSet, side: int) -> ImageSet:
    """As for training and evaluation, so that h is the same; read once, so not worth a place in the cache."""
    return source.decoded(side, budget=0)


def represented(
    run: str | os.PathLike[str],
    images: Source,
    precision: str,
    progress: Progress | None,
    reduce: Callable[[ImageSet, int], ImageSet] = reduced,
) -> tuple[Encoder, ImageSet, Float32[np.ndarray, "n features"], np.ndarray]:
    """The run's encoder, the images as it saw them (`reduce` to a short side of 2S), h, and which could be read."""
    dtype, world = DTYPES[choose("precision", precision, DTYPES)], join()
    encoder = load_encoder(run).to(default_device())
    source = reduce(open_images(images), source_side(encoder.size))
    h, kept = represent(encoder, source, dtype, progress=progress, world=world)
    source.skipped = world.union(source.skipped)
    if not len(kept):
        raise StepclrError(f"no image of {source.source} can be read")
    return encoder, source, h.numpy(), kept
