"""Embeddings: h of every picture of a source."""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from stepclr.data import ImageSet, Source, open_images
from stepclr.data.disk import write_whole
from stepclr.errors import StepclrError, choose
from stepclr.model import Encoder, load_encoder, represent
from stepclr.model.represent import Progress
from stepclr.pretrain.settle import device_for_training
from stepclr.ranks import join

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def embed(
    run: str | os.PathLike[str], images: Source, precision: str = "fp32", progress: Progress | None = None
) -> Float32[np.ndarray, "n features"]:
    """Representations h `[n, F]`, float32, of all pictures of `images` in their order, by the encoder of `run`.

    Args: run: a run's folder or an `encoder.safetensors`. images: an `ImageSet` or anything `open_images` takes.
    precision: arithmetic of the encoder, "fp32" or "bf16".
    A picture that cannot be read has a row of NaN, and a warning says how many there are.
    """
    _, source, h, kept = represented(run, images, precision, progress)
    if len(kept) == len(source):
        return h
    warnings.warn(
        f"{len(source) - len(kept)} pictures of {source.source} cannot be read: their rows are NaN",
        stacklevel=2,
    )
    rows = np.full((len(source), h.shape[1]), np.nan, np.float32)
    rows[kept] = h
    return rows


def write_embeddings(
    run: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    precision: str = "fp32",
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write `out` (.npz): `embeddings` float32 `[n, F]`, `paths`, `labels` int64 (-1: none), `classes`.

    Or a .parquet of `vector`, `path`, `label` (null: none) and `thumbnail` (JPEG), as `search.build_index` keeps them.
    Pictures that cannot be read are left out and listed in `<out>.skipped.csv`. Returns both counts.
    """
    path = Path(out)
    if path.suffix == ".parquet":
        from stepclr.use.search.table import write_parquet

        return write_parquet(run, images, path, precision, progress)
    if path.suffix != ".npz":
        raise StepclrError(
            f"--out {path} names no format: it must end in .npz or .parquet, or be a folder for an index"
        )
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
    return len(kept), len(source) - len(kept)


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
    """The run's encoder, the pictures as it saw them (`reduce` to a short side of 2S), h, and which could be read."""
    dtype, ranks = DTYPES[choose("precision", precision, DTYPES)], join()
    encoder = load_encoder(run).to(device_for_training())
    source = reduce(open_images(images), 2 * encoder.size)
    h, kept = represent(encoder, source, dtype, progress=progress, ranks=ranks)
    source.skipped = ranks.union(source.skipped)
    if not len(kept):
        raise StepclrError(f"no picture of {source.source} can be read")
    return encoder, source, h.numpy(), kept
