"""Embeddings: h of every image of a source."""

import os

import numpy as np
from jaxtyping import Float32, Int64
from torch import nn

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.device import default_device, dtype_of
from stepclr.distributed import join
from stepclr.errors import StepclrError
from stepclr.model.encoder import Encoder
from stepclr.model.features import fill_unreadable, represent, resized
from stepclr.model.files import load_encoder
from stepclr.threads import Progress


def embed(
    run: str | os.PathLike[str],
    images: Source,
    precision: str = "fp32",
    progress: Progress | None = None,
    module: nn.Module | None = None,
) -> Float32[np.ndarray, "n features"]:
    """Representations h `[n, F]`, float32, of all images of `images` in their order, by the encoder of `run`.

    Args:
        run: a run's folder, an `encoder.safetensors` or "timm:NAME".
        images: an `ImageSet` or anything `open_images` takes.
        precision: of the encoder's arithmetic, "fp32" or "bf16".
        progress: is called with (images done, images in all).
        module: where the run was pretrained with your own module, such a module; it receives the weights.

    An image that cannot be read has a row of NaN, and a warning reports how many there are. Raises StepclrError if
    no image can be read.
    """
    join()  # first: it decides which GPU is this rank's
    encoder = load_encoder(run, module).to(default_device())
    source = resized(open_images(images), encoder)
    h, kept = represented(encoder, source, precision, progress)
    return fill_unreadable(h, kept, source)


def represented(
    encoder: Encoder, images: ImageSet, precision: str, progress: Progress | None
) -> tuple[Float32[np.ndarray, "m features"], Int64[np.ndarray, " m"]]:
    """h `[m, F]` of the readable images, from all ranks, and their indices; StepclrError if there is none."""
    world = join()
    h, kept = represent(encoder, images, dtype_of(precision), progress=progress, world=world)
    images.ledger.unreadable |= world.union(images.skipped)
    if not len(kept):
        raise StepclrError(f"no image of {images.source} can be read")
    return h.numpy(), kept
