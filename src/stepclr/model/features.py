"""A frozen encoder over a whole `ImageSet`: the features that evaluation, monitoring and `embed` use."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stepclr.data.decode import source_side
from stepclr.data.images import ImageBatch, ImageSet
from stepclr.device import Each, side_by_side
from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError
from stepclr.model.build import OWN_MODULE
from stepclr.model.cpu_conv import cpu_convolutions, use_cpu_convolutions
from stepclr.model.encoder import SMALL, Encoder
from stepclr.threads import Progress, read_ahead

CHECKED = 64  # images that show whether an encoder still represents anything
CHUNK = 32  # images whose feature maps fit into a processor's cache, in bfloat16, or mostly in float32


class NotFiniteError(StepclrError):
    """An encoder whose representations are not finite numbers: its training has diverged."""


@dataclass(frozen=True)
class Written:
    """How many rows a file has, one per image, and how many images were skipped because they cannot be read."""

    rows: int
    skipped: int


def resized(images: ImageSet, encoder: Encoder) -> ImageSet:
    """The images reduced as for training, so that h is the same; not cached, because they are read only once."""
    return encoder.ranged(images).decoded(source_side(encoder.size), budget=0)


def represent(
    encoder: Encoder,
    images: ImageSet,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
    progress: Progress | None = None,
    world: World = ALONE,
) -> tuple[Float[Tensor, "n features"], Int[np.ndarray, " n"]]:
    """h `[n, F]` in float32 of every readable image, center cropped, and the indices of those images.

    The encoder runs in eval mode without gradient; afterwards it is in the mode it was in. `dtype` bfloat16 is faster,
    for monitoring and search; scores are always computed from float32, whose convolutions torch computes in TF32 on a
    GPU, unless it is told otherwise. The ranks of `world` share the batches, and each receives all of h, the same as
    from one process; `images.skipped` lists what this rank could not read.
    Raises NotFiniteError where h is not finite, although every weight may be.
    """
    n, training = len(images), encoder.training
    encoder.eval()
    parts: list[Tensor] = []
    kept: list[NDArray[np.int64]] = []
    try:
        with torch.inference_mode():
            features = encoder if dtype == torch.float32 else _in_bfloat16(encoder)
            # On the CPU, chunks of a few large images side by side: a thread for each keeps all cores busy, and no
            # thread waits for another.
            apart = dtype == torch.float32 and encoder.test_size > SMALL and encoder.mean.device.type == "cpu"
            chunk = CHUNK if apart else batch_size
            each: Each = map if encoder.name.startswith(OWN_MODULE) else side_by_side

            def represented(images: ImageBatch) -> Tensor:
                with torch.inference_mode():  # each thread has its own
                    x = encoder.preprocess(images).contiguous(memory_format=torch.channels_last)
                    return features(x).float().cpu()

            batches = [np.arange(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
            # Each rank takes every `world.size`-th batch.
            for batch, (pixels, readable) in read_ahead(batches[world.rank :: world.size], images.read_readable):
                if len(readable):
                    chunks = [pixels]
                    if len(pixels) > chunk:
                        chunks = [pixels[i : i + chunk] for i in range(0, len(pixels), chunk)]
                    parts += each(represented, chunks)
                    kept.append(np.asarray(readable))
                if progress:
                    progress(int(batch[-1]) + 1, n)
    finally:
        encoder.train(training)
    h = torch.cat([torch.empty(0, encoder.num_features), *parts])
    indices = np.concatenate([np.empty(0, np.int64), *kept])
    if world.size > 1:
        # The ranks' batches alternate, so put what they send back into the order of the images.
        sizes = world.sizes(len(h))
        gathered = world.gather(torch.from_numpy(indices), sizes)
        order = gathered.argsort()
        h, indices = world.gather(h, sizes)[order], gathered[order].numpy()
    lost = int((~h.isfinite().all(1)).sum())
    if lost:
        raise NotFiniteError(
            f"the encoder {encoder.name} gives {lost} of {len(h)} images of {images.source} numbers that are not "
            "finite: its training diverged"
        )
    return h, indices


def check_represents(encoder: Encoder, images: ImageSet) -> None:
    """Raise NotFiniteError where h is not finite, of the first images alone."""
    represent(encoder, images.take(range(min(CHECKED, len(images)))))


def fill_unreadable(
    rows: Float32[np.ndarray, "m columns"], kept: Int[np.ndarray, " m"], images: ImageSet
) -> Float32[np.ndarray, "n columns"]:
    """One row per image: `rows` at the indices `kept`, NaN for the other images, which a warning counts."""
    if len(kept) == len(images):
        return rows
    warnings.warn(
        f"{len(images) - len(kept)} images of {images.source} cannot be read: their rows are NaN", stacklevel=3
    )
    filled = np.full((len(images), rows.shape[1]), np.nan, np.float32)
    filled[kept] = rows
    return filled


def _in_chunks(of_few: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of any number of images, from one that is fast for up to CHUNK images."""
    return lambda x: torch.cat([of_few(part) for part in x.split(CHUNK)])


def _in_bfloat16(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """f(.) in bfloat16 of an encoder in eval mode: for ResNets on a CPU a converted copy, otherwise under autocast."""
    on_cpu = encoder.mean.device.type == "cpu"
    body = copy.deepcopy(encoder.body) if on_cpu and isinstance(encoder.body, ResNet) else None
    if body is None or not fold_batch_norm(body):

        def under_autocast(x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n features"]:
            with torch.autocast(x.device.type, torch.bfloat16), cpu_convolutions(encoder):
                return encoder(x)

        return under_autocast

    use_cpu_convolutions(body)
    half = body.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def by_copy(x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n features"]:
        h: Tensor = half(((x - encoder.mean) / encoder.std).bfloat16()).float()
        return F.normalize(h) if encoder.normalize_h else h

    return _in_chunks(by_copy)


def fold_batch_norm(body: nn.Module) -> bool:
    """Fold each BatchNorm in eval mode into the convolution before it, in place; returns whether none is left."""
    for module in list(body.modules()):
        for (name, first), (then, second) in pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and type(second) is nn.BatchNorm2d:
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, then, nn.Identity())
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in body.modules())
